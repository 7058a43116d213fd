"""Solutions of notebook 06: a classifier that may abstain errs less, and what a background does to blank images."""

from __future__ import annotations

import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor

from farmer_ref import Farmer, train
from farmer_ref.applications.anomalies import AnomalyScorer
from farmer_ref.applications.classification import class_log_probs, class_probabilities
from farmer_ref.data.sets import batches, load_split


def accuracy_of_the_surest(probabilities: Tensor, labels: Tensor, share: float) -> float:
    """The accuracy among the `share` of images whose predicted class has the highest probability."""
    confidence, predicted = probabilities.max(1)
    surest = confidence.argsort(descending=True)[: round(share * len(labels))]
    return (predicted == labels)[surest].double().mean().item()


def background(train: Tensor, levels: int, positions: bool) -> Tensor:
    """log h of every grey level at every pixel (C,H,W,L), by counting: at that pixel, or at all of them alike."""
    counts = F.one_hot(train.long(), levels).sum(0).double()
    if not positions:
        counts = counts.sum((0, 1, 2), keepdim=True).expand_as(counts)
    return ((counts + 1) / (counts + 1).sum(-1, keepdim=True)).log()


def ratio_score(likelihood: Tensor, values: Tensor, log_h: Tensor) -> Tensor:
    """-(log p - log h), (B,), from the score -log p: strange is what the model likes no better than h does."""
    levels = values.long().unsqueeze(-1)
    return likelihood + log_h.expand(*levels.shape[:-1], -1).gather(-1, levels).sum((1, 2, 3, 4))


def auroc(strange: Tensor, usual: Tensor) -> float:
    """How often a strange image has the higher score than a usual one; ties count half."""
    difference = strange[:, None] - usual
    return ((difference > 0).double() + (difference == 0).double() / 2).mean().item()


def compare(
    scorer: AnomalyScorer, train: Tensor, usual: Tensor, strangers: dict[str, Tensor]
) -> dict:
    """AUROC by the name of the strange images and of the score."""
    levels, found = scorer.model.config.levels, {}
    tables = {
        "against levels": background(train, levels, False),
        "against pixels": background(train, levels, True),
    }

    def scores(values: Tensor) -> dict[str, Tensor]:
        all_scores = scorer.scores(values)
        ratios = {
            name: ratio_score(all_scores["likelihood"], values, log_h)
            for name, log_h in tables.items()
        }
        return {name: all_scores[name] for name in ("likelihood", "complexity")} | ratios

    normal = scores(usual)
    for name, values in strangers.items():
        found[name] = {
            score: auroc(value, normal[score]) for score, value in scores(values).items()
        }
    return found


def strangers_to(values: Tensor) -> dict[str, Tensor]:
    """Blank pages, and digits moved or paled."""
    return {
        "blank": torch.zeros_like(values),
        "faint": values // 2,
        "shifted by one": values.roll(1, -1),
        "shifted by two": values.roll(2, -1),
    }


def print_table(title: str, table: dict) -> None:
    """One line for each kind of strange images."""
    print(title)
    for name, row in table.items():
        print(f"  {name:15s}", ", ".join(f"{score} {value:.3f}" for score, value in row.items()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = Farmer.from_pretrained("digits")
    splits = {
        name: next(batches(load_split("digits", name, model.config), 2000))
        for name in ("train", "validation", "test")
    }
    values, labels = splits["test"]
    probabilities = class_probabilities(class_log_probs(model, values, draws=1, batch_size=300))
    for share in (1.0, 0.9, 0.8):
        print(
            f"accuracy of the surest {share:.0%}: {accuracy_of_the_surest(probabilities, labels, share):.1%}"
        )
    images, classes = splits["train"]
    scorer = AnomalyScorer(model, images[:500], classes[:500], draws=1)
    for name in ("validation", "test"):
        values, _ = splits[name]
        print_table(name, compare(scorer, images, values, strangers_to(values)))
    quiet = ["--validate-every", "0", "--sample-every", "0", "--device", "cpu"]
    with tempfile.TemporaryDirectory() as folder:  # class 1 left out, a short training
        length = ["--dataset", "digits-without-1", "--steps", "400"]
        train.main(["--preset", "digits", "--out", folder, *length, *quiet])
        shorter = Farmer.from_pretrained(folder)
    kept = classes != 1
    scorer = AnomalyScorer(shorter, images[kept][:500], classes[kept][:500], draws=1)
    for name in ("validation", "test"):
        values, labels = splits[name]
        table = compare(scorer, images[kept], values[labels != 1], {"ones": values[labels == 1]})
        print_table(f"{name}, of a model that saw no ones", table)
