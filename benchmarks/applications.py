"""Measure the applications of the likelihood: `python -m benchmarks.applications`. Writes results/applications.json and
its pictures.

inpainting: the lower half of digits drawn given the upper one, with the label and without; a classifier's accuracy on
   the completions, and their diversity; and, with samples of the model in place of digits, whether the truth looks
   like one of the completions, as it must if the conditional distribution is right.
editing: class changes, other details, interpolation in latents and pixels.
anomalies: one class left out (ten models of nine classes), simple images, Fashion-MNIST against MNIST and the reverse
   (models of a few minutes). The score is chosen on validation splits. Baselines: ten border pixels, a Gaussian
   mixture, the reconstruction error of a PCA.
classification: Bayes' rule on the test split, its calibration, a temperature fitted on validation.

Models and completions are kept in --runs, and finished ones are not computed again.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from pydantic import PositiveInt
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from torch import Tensor
from tqdm import tqdm, trange

from farmer_ref import PRESETS, Farmer, Guidance
from farmer_ref.applications.anomalies import AnomalyScorer
from farmer_ref.applications.classification import (
    class_log_probs,
    class_probabilities,
    expected_calibration_error,
    reliability,
)
from farmer_ref.applications.editing import change_class, change_details, interpolate
from farmer_ref.applications.inpainting import inpaint
from farmer_ref.data.order import random_seed
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import PixelClassifier
from farmer_ref.model.config import NULL_LABEL
from farmer_ref.model.pretrained import fingerprint
from farmer_ref.support import cli
from farmer_ref.support.files import read_json, read_weights, write_json, write_weights
from farmer_ref.support.plots import COLOURS, STYLE, keep_labels_apart, labelled_grids, save_plot
from farmer_ref.support.record import ROOT, mean_and_spread, provenance
from farmer_ref.support.settings import Whole, settings_class

WALK = 11  # images of an interpolation
SECTIONS = ("inpainting", "editing", "anomalies", "classification")


@settings_class
class ApplicationsBenchmark:
    """The parts to measure, and their sizes."""

    sections: tuple[Literal["inpainting", "editing", "anomalies", "classification"], ...] = SECTIONS
    """Parts to measure; the others stay as they are in results/applications.json."""
    digits: tuple[PositiveInt, PositiveInt] = (100, 2)
    """Evenly spaced test images to complete with their label, and completions of each."""
    without_label: tuple[PositiveInt, PositiveInt] = (20, 6)
    """The same without labels."""
    samples: tuple[PositiveInt, PositiveInt] = (100, 2)
    """The same for samples of the model in place of test images."""
    particles: PositiveInt = 16
    """Particles of each completion."""
    draws: PositiveInt = 16
    """Dequantisations per image in classification."""
    anomaly_draws: PositiveInt = 2
    """Dequantisations per image for anomaly scores."""
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """Seeds of edits, and of dequantisation in classification."""
    steps: PositiveInt = 1500
    """Training steps of the models of nine classes."""
    images: PositiveInt = 300
    """Validation and test images of MNIST and Fashion-MNIST each; of digits, all."""
    reference: PositiveInt = 1500
    """Training images that define what is normal."""
    data_root: str = "data"
    """Where torchvision keeps its data sets."""
    runs: str = "runs/applications"
    """Where models and completions are kept."""
    threads: PositiveInt = 2
    """CPU threads."""


def digits(split: str, model: Farmer, limit: int = 10_000) -> tuple[Tensor, Tensor]:
    """Grey levels and labels of a split of the digits."""
    return next(batches(load_split("digits", split, model.config), limit, limit))


# -- inpainting --------------------------------------------------------------------------------------------------------


def completed(
    config: ApplicationsBenchmark, name: str, values: Tensor, known: Tensor, labels: Tensor, count: int
) -> dict:
    """Complete all images `count` times, in parts of four images that are cached on disk."""
    model, size, parts = Farmer.from_pretrained("digits"), 4, []
    teller = f"{float(fingerprint(model.flow).sum()):.6g}"  # another model completes anew
    for first in trange(0, len(values), size, desc=f"inpainting, {name}", unit="part"):
        key = f"{name}-{config.particles}-{count}-of-{len(values)}-{first}-{teller}"
        path = Path(config.runs) / "completions" / f"{key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            rows = slice(first, first + size)
            generator = torch.Generator().manual_seed(random_seed(0, name, first))
            done = inpaint(
                model, values[rows], known, labels[rows], samples=count, particles=config.particles, generator=generator
            )
            figures = torch.tensor([done.acceptance, done.temperatures])
            write_weights(path, {"values": done.values, "log_prob": done.log_prob, "figures": figures})
        parts.append(read_weights(path))
    joined = {name: torch.cat([part[name] for part in parts]) for name in ("values", "log_prob")}
    figures = torch.stack([part["figures"] for part in parts]).double().mean(0).tolist()
    return joined | {"acceptance": figures[0], "temperatures": figures[1]}


def spread_and_distance(drawn: Tensor, truth: Tensor, missing: Tensor) -> dict[str, float]:
    """Standard deviation over completions (n,k,C,H,W), and root mean square distance to the truth, in grey levels.

    If the truth (n,C,H,W) is one more draw, the distance of the mean is sqrt(1 + 1/k) times the deviation; it is
    divided by that factor, so the two figures should agree.
    """
    pixels, true = drawn.double()[..., missing], truth.double()[..., missing]  # (n,k,U), (n,U)
    deviation = pixels.var(1).mean().sqrt()
    count = pixels.shape[1]
    distance = (pixels.mean(1) - true).square().mean().sqrt() / (1 + 1 / count) ** 0.5
    return {"standard_deviation": float(deviation), "distance_of_truth": float(distance)}


@torch.no_grad()
def samples_with_cells(model: Farmer, labels: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
    """One sample (n,C,H,W) per label whose known pixels lie in [-1, 1], where the cells are. Nothing is clipped.

    Given the cells of its known pixels, such a sample is distributed as a completion is. Clipping would move it closer
    to the data, to a higher density than that of the draw.
    """
    found = []
    for label in labels:
        while True:
            drawn = model.decode(model.prior.sample(label.expand(50), generator=generator))
            inside = drawn[(drawn[..., known[0]].abs() < 1).flatten(1).all(1)]
            if len(inside):
                break
        found.append(inside[0])
    return torch.stack(found)


def inpainting(config: ApplicationsBenchmark) -> dict:
    """Complete the lower half of digits and of samples."""
    model = Farmer.from_pretrained("digits")
    classifier = PixelClassifier(load_split("digits", "train", model.config))
    known = torch.zeros(1, 8, 8, dtype=torch.bool)
    known[:, :4] = True
    missing = ~known
    values, labels = digits("test", model, config.digits[0])
    some, their_labels = digits("test", model, config.without_label[0])
    generator = torch.Generator().manual_seed(0)
    sample_labels = torch.arange(config.samples[0]) % 10
    samples = samples_with_cells(model, sample_labels, known, generator)
    quantised = model.dequantiser.quantise(samples)
    count = config.digits[1]
    pasted = model.dequantiser.quantise(model.sample(labels.repeat_interleave(count), generator=generator))
    pasted = torch.where(known, values[:, None], pasted.unflatten(0, (len(values), -1)))

    given = completed(config, "label", values, known, labels, count)
    free = completed(
        config, "no-label", some, known, torch.full_like(their_labels, NULL_LABEL), config.without_label[1]
    )
    check = completed(config, "unclipped-samples", quantised, known, sample_labels, config.samples[1])
    record: dict = {"missing_pixels": int(missing.sum())}
    for name, truth, drawn in (
        ("with_label", values, given),
        ("without_label", some, free),
        ("samples", quantised, check),
    ):
        assert bool((drawn["values"] == truth[:, None])[..., known].all())  # known pixels are bit-identical
        record[name] = {
            "images": len(truth),
            "completions": drawn["values"].shape[1],
            "known_pixels_identical": True,
            "acceptance": drawn["acceptance"],
            "temperatures": drawn["temperatures"],
            **spread_and_distance(drawn["values"], truth, missing),
        }
    wanted = labels.repeat_interleave(count)
    correct = (classifier.predict(given["values"].flatten(0, 1)) == wanted).double().view(-1, count)
    record["with_label"] |= {
        "completions_read_as_class": float(correct.mean()),
        "pasted_samples_read_as_class": classifier.accuracy(pasted.flatten(0, 1), wanted),
        "whole_images_read_as_class": classifier.accuracy(values, labels),
        "blanked_images_read_as_class": classifier.accuracy(values * known, labels),
    }
    classes = classifier.predict(free["values"].flatten(0, 1)).view(len(some), -1)
    record["without_label"] |= {
        "completions_read_as_class": float((classes == their_labels[:, None]).double().mean()),
        "digits_read_as_several_classes": float((classes != classes[:, :1]).any(1).double().mean()),
        "distinct_classes": float(np.mean([len(row.unique()) for row in classes])),
    }
    truth, copies = model.log_prob(samples, sample_labels).detach(), config.samples[1]
    ranks = (check["log_prob"] < truth[:, None]).double().mean(1)  # uniform if the truth is one more draw
    ink = [levels.double()[..., missing].sum(-1) for levels in (check["values"], quantised)]
    ink_ranks = (ink[0] < ink[1][:, None]).double().mean(1) + (ink[0] == ink[1][:, None]).double().mean(1) / 2
    record["samples"] |= {
        "mean_rank_of_log_prob": float(ranks.mean()),
        "mean_rank_of_ink": float(ink_ranks.mean()),
        "standard_error_of_a_mean_rank": ((copies + 2) / (12 * copies) / len(ranks)) ** 0.5,
        "ranks_of_log_prob": ranks.tolist(),
        "ranks_of_ink": ink_ranks.tolist(),
    }
    draw_inpainting(model, known, (values, labels, given["values"]), (some, their_labels, free["values"]))
    return record


def draw_inpainting(model: Farmer, known: Tensor, given: tuple, free: tuple) -> None:
    """For each digit the image, its known part, and the completions; two digits to a row where the label is given."""
    grids = {}
    for name, (values, labels, drawn), count in (("label given", given, 16), ("no label", free, 8)):
        order = labels.argsort(stable=True)[torch.arange(count) * len(labels) // count]
        complete, completions = (
            levels[order].double() / (model.config.levels - 1) * 2 - 1 for levels in (values, drawn)
        )
        masked = torch.where(known, complete, 0.0)
        grids[f"{name}: image, known half, completions"] = torch.cat(
            [complete[:, None], masked[:, None], completions], 1
        ).flatten(0, 1)
    labelled_grids(grids, columns=2 + free[2].shape[1]).savefig(ROOT / "results" / "inpainting.png")


# -- editing -----------------------------------------------------------------------------------------------------------


def editing(config: ApplicationsBenchmark) -> dict:
    """Class changes and other details of test images; interpolation between these."""
    model = Farmer.from_pretrained("digits")
    classifier = PixelClassifier(load_split("digits", "train", model.config))
    values, labels = digits("test", model)
    levels = model.config.levels - 1

    def level_distance(edits: Tensor) -> float:
        """Root mean square distance to the images, in grey levels."""
        return float((model.dequantiser.quantise(edits).double() - values.double()).square().mean().sqrt())

    runs = []
    for seed in config.seeds:
        generator = torch.Generator().manual_seed(seed)
        images = model.dequantiser(values, model.dequantiser.draw(tuple(values.shape), generator))
        other = (labels + 1 + torch.randint(9, labels.shape, generator=generator)) % 10
        run: dict = {}
        for name, guidance in (("class", None), ("class_guided", Guidance(scale=1.0))):
            edits = change_class(model, images, labels, other, guidance=guidance, generator=generator)
            fresh = model.sample(other, guidance, generator=generator)
            run[name] = {
                "read_as_new_class": classifier.accuracy(model.dequantiser.quantise(edits), other),
                "samples_read_as_new_class": classifier.accuracy(model.dequantiser.quantise(fresh), other),
                "distance": level_distance(edits),
                "distance_of_samples": level_distance(fresh),
            }
        edits = change_details(model, images, labels, generator=generator)
        run["details"] = {
            "read_as_class": classifier.accuracy(model.dequantiser.quantise(edits), labels),
            "distance": level_distance(edits),
            "distance_of_samples": level_distance(model.sample(labels, generator=generator)),
        }
        runs.append(run)
    first, second, same = pairs_of(labels)
    walks = {
        name: interpolate(model, images[first], images[second], steps=WALK, latent=latent)
        for name, latent in (("latents", True), ("pixels", False))
    }
    generator = torch.Generator().manual_seed(0)
    record: dict = {"pairs": len(first), "pairs_of_one_class": int(same.sum()), "walks": {}}
    for name, walk in walks.items():
        steps = model.dequantiser.quantise(walk)  # (pairs,WALK,C,H,W)
        noise = model.dequantiser.draw(tuple(steps.shape), generator)
        with torch.no_grad():
            log_p = model.log_prob(model.dequantiser(steps, noise).flatten(0, 1)).view(len(first), -1)
        middle = steps[:, steps.shape[1] // 2]
        predicted = classifier.predict(middle)
        either = (predicted == labels[first]) | (predicted == labels[second])
        record["walks"][name] = {
            "nats_per_image": log_p.double().mean(0).tolist(),
            "middle_of_one_class_read_as_class": classifier.accuracy(middle[same], labels[first][same]),
            "middle_of_two_classes_read_as_either": float(either[~same].double().mean()),
        }
    for name in ("class", "class_guided", "details"):
        record[name] = {key: mean_and_spread([run[name][key] for run in runs]) for key in runs[0][name]}
    draw_editing(model, values, labels, images, walks, (first, second), levels)
    return record


def pairs_of(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Random pairs of images, 100 of one class and then 100 of two classes, and which are of one class."""
    pairs = [(i, j) for i in range(len(labels)) for j in range(i + 1, len(labels))]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    same = [pairs[k] for k in order if labels[pairs[k][0]] == labels[pairs[k][1]]][:100]
    other = [pairs[k] for k in order if labels[pairs[k][0]] != labels[pairs[k][1]]][:100]
    first, second = torch.tensor(same + other).T
    return first, second, torch.arange(len(first)) < len(same)


def draw_editing(
    model: Farmer,
    values: Tensor,
    labels: Tensor,
    images: Tensor,
    walks: dict[str, Tensor],
    ends: tuple[Tensor, Tensor],
    levels: int,
) -> None:
    """Five digits under all labels, the same with other details, and five walks."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.tensor([int((labels == c).nonzero()[0]) for c in range(0, 10, 2)])
    original = values[chosen].double() / levels * 2 - 1
    under = [
        change_class(model, images[chosen], labels[chosen], torch.full((5,), c), generator=generator) for c in range(10)
    ]
    details = [change_details(model, images[chosen], labels[chosen], generator=generator) for _ in range(10)]
    grids = {}
    for name, edits in (("image, then under the labels 0 to 9", under), ("image, then with other details", details)):
        shown = [original, *(model.dequantiser.without_noise(edit).double() for edit in edits)]
        grids[name] = torch.stack(shown, 1).flatten(0, 1)
    picked = [0, 1, 2, len(ends[0]) - 3, len(ends[0]) - 2]
    for name, walk in walks.items():
        shown = model.dequantiser.without_noise(walk[picked]).double()
        grids[f"walks in the {name}"] = shown.flatten(0, 1)
    labelled_grids(grids, columns=WALK).savefig(ROOT / "results" / "editing.png")


# -- anomalies ---------------------------------------------------------------------------------------------------------


def train(config: ApplicationsBenchmark, dataset: str) -> Path:
    """Train a model on a data set, unless it has been trained already."""
    preset = PRESETS["mnist-quick" if dataset in ("mnist", "fashion-mnist") else "digits"]
    steps = config.steps if preset.dataset == "digits" else preset.steps
    folder = Path(config.runs) / f"{dataset}-{preset.model.pixels}-{steps}"
    if not (folder / "finished").exists():
        arguments = ["--preset", preset.preset, "--dataset", dataset, "--data-root", config.data_root, "--out", folder]
        arguments += ["--steps", steps, "--device", "cpu", "--resume"]
        arguments += ["--validate-every", 0, "--sample-every", 0, "--checkpoint-every", 250]
        line = [sys.executable, "-m", "farmer_ref.train", *map(str, arguments)]
        subprocess.run(line, check=True, env=os.environ | {"OMP_NUM_THREADS": str(config.threads)})
        (folder / "finished").touch()
    return folder


class Baselines:
    """Scores without our model: ten border pixels, a Gaussian mixture, the reconstruction error of a PCA."""

    def __init__(self, train: Tensor, levels: int):
        self.levels = levels
        pixels = self.pixels(train)
        self.border = np.argsort(pixels.sum(0), kind="stable")[:10]  # the pixels with the least ink
        self.pca = PCA(16, random_state=0).fit(pixels)
        self.features = PCA(0.95, random_state=0).fit(pixels)
        reduced = self.features.transform(pixels)
        self.mixture = GaussianMixture(20, covariance_type="full", reg_covar=1e-3, random_state=0).fit(reduced)

    def pixels(self, values: Tensor) -> np.ndarray:
        """Grey levels (n,C,H,W) scaled to [0, 1], (n,d)."""
        return values.flatten(1).double().numpy() / (self.levels - 1)

    def scores(self, values: Tensor) -> dict[str, Tensor]:
        """Every score (n,) by name; larger is stranger."""
        pixels = self.pixels(values)
        restored = self.pca.inverse_transform(self.pca.transform(pixels))
        found = {
            "ten border pixels": pixels[:, self.border].sum(1),
            "Gaussian mixture": -self.mixture.score_samples(self.features.transform(pixels)),
            "PCA error": np.square(pixels - restored).sum(1),
        }
        return {name: torch.from_numpy(score) for name, score in found.items()}


def blurred(values: Tensor) -> Tensor:
    """Grey levels smoothed by the binomial filter (1, 2, 1) in both directions."""
    one = torch.tensor([0.25, 0.5, 0.25])
    smooth = F.conv2d(F.pad(values.float(), (1, 1, 1, 1)), (one[:, None] * one)[None, None])
    return smooth.round().to(torch.uint8)


def auroc(normal: Tensor, strange: Tensor) -> float:
    """The probability that a strange image has the larger score."""
    truth = np.repeat([0, 1], [len(normal), len(strange)])
    return float(roc_auc_score(truth, torch.cat([normal, strange]).numpy()))


def anomalies(config: ApplicationsBenchmark) -> dict:
    """AUROC of every score on every task, on validation and test; the score is chosen on validation."""
    jobs: list[tuple[str, str, str]] = [("simple", "digits", "")]
    jobs += [(f"without {k}", f"digits-without-{k}", "digits") for k in range(10)]
    jobs += [("MNIST", "fashion-mnist", "mnist"), ("Fashion-MNIST", "mnist", "fashion-mnist")]
    tasks: dict[str, dict] = {}
    for name, dataset, other in tqdm(jobs, desc="anomalies", unit="task"):
        model = Farmer.from_pretrained("digits" if name == "simple" else train(config, dataset))

        def load(which: str, split: str, model: Farmer = model) -> tuple[Tensor, Tensor]:
            shape = replace(model.config, class_names=())  # clothes have other classes than digits
            data = load_split(which, split, shape, data_root=config.data_root)
            limit = config.reference if split == "train" else config.images
            return next(batches(data, limit, limit))

        normal_train, labels = load(dataset, "train")
        ours = AnomalyScorer(model, normal_train, labels, draws=config.anomaly_draws)
        theirs = Baselines(normal_train, model.config.levels)
        for split in ("validation", "test"):
            normal, _ = load(dataset, split)
            if name == "simple":
                strange = {
                    "blank": torch.zeros_like(normal),
                    "blurred": blurred(normal),
                    "faint": (normal / 4).round().to(torch.uint8),
                }
            else:
                values, labels = load(other, split)
                strange = {name: values[labels == int(name[-1])] if other == "digits" else values}
            usual = ours.scores(normal) | theirs.scores(normal)
            for task, images in strange.items():
                odd = ours.scores(images) | theirs.scores(images)
                tasks.setdefault(task, {})[split] = {score: auroc(usual[score], odd[score]) for score in usual}
                if split == "test":
                    nats = {"normal": usual["likelihood"], "strange": odd["likelihood"]}
                    tasks[task]["likelihood"] = {key: value.tolist() for key, value in nats.items()}
                    tasks[task]["strange_images"] = len(images)
    left_out = [f"without {k}" for k in range(10)]
    groups = {"one class left out": left_out, **{task: [task] for task in tasks if task not in left_out}}
    table = {
        split: {
            group: {score: float(np.mean([tasks[task][split][score] for task in members])) for score in usual}
            for group, members in groups.items()
        }
        for split in ("validation", "test")
    }
    mean = {score: float(np.mean([row[score] for row in table["validation"].values()])) for score in ours.SCORES}
    best = max(mean, key=lambda score: mean[score])
    spread = {
        score: mean_and_spread([tasks[task]["test"][score] for task in left_out])["standard_deviation"]
        for score in usual
    }
    draw_likelihoods(tasks)
    for task in tasks.values():
        del task["likelihood"]  # already drawn, and too long to record
    record = {
        "chosen_on_validation": best,
        "mean_validation_auroc": mean,
        **table,
        "spread_over_left_out_classes": spread,
        "tasks": tasks,
    }
    save_plot(draw_scores(record), ROOT / "results" / "anomalies.svg")
    return record


def draw_scores(record: dict) -> Figure:
    """AUROC of every score on the test split."""
    table, best = record["test"], record["chosen_on_validation"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 4), layout="constrained")
        axes = figure.subplots()
        scores = list(next(iter(table.values())))
        for number, score in enumerate(scores):
            places = [group + (number - len(scores) / 2 + 0.5) * 0.1 for group in range(len(table))]
            label = f"{score} (chosen)" if score == best else score
            colour = [*COLOURS, "#999999"][number]
            axes.bar(places, [row[score] for row in table.values()], 0.09, label=label, color=colour)
        axes.axhline(0.5, color="black", lw=0.8, ls="--")
        axes.set_xticks(range(len(table)), list(table))
        axes.set(ylabel="AUROC, test split", ylim=(0, 1.02), title="Anomaly scores; higher is better, .5 is chance")
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center", fontsize=9)
    return figure


def draw_likelihoods(tasks: dict) -> None:
    """Histograms of the likelihood, where it fails and where it does not."""
    shown = ("blank", "without 1", "MNIST", "Fashion-MNIST")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 4.6), layout="constrained")
        for axes, task in zip(figure.subplots(2, 2).flatten(), shown, strict=True):
            values = tasks[task]["likelihood"]
            joined = np.concatenate([values["normal"], values["strange"]])
            edges = np.linspace(*np.quantile(joined, (0.005, 0.995)), 30)
            for colour, key in ((COLOURS[0], "normal"), (COLOURS[1], "strange")):
                axes.hist(values[key], bins=edges, density=True, color=colour, alpha=0.6, label=key)
            axes.set_title(f"{task}: AUROC {tasks[task]['test']['likelihood']:.2f}", fontsize=11)
            axes.set_yticks([])
            axes.set_xlabel("$-$log p(x), nats")
            axes.locator_params(axis="x", nbins=4)
            if task == shown[0]:
                axes.legend(frameon=False)
    keep_labels_apart(figure)
    figure.savefig(ROOT / "results" / "likelihoods.png")


# -- classification ----------------------------------------------------------------------------------------------------


def fit_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """The temperature in [.01, 1000] with the least cross-entropy on held-out images (Guo et al. 2017).

    Found by ternary search: the cross-entropy is convex in 1/T, so it falls and then rises in log T.
    """

    def cross_entropy(log_temperature: float) -> float:
        return float(F.nll_loss(F.log_softmax(log_probs.double() / math.exp(log_temperature), -1), labels))

    low, high = math.log(0.01), math.log(1000)
    while high - low > 1e-3:
        first, second = (2 * low + high) / 3, (low + 2 * high) / 3
        low, high = (low, second) if cross_entropy(first) < cross_entropy(second) else (first, high)
    return math.exp((low + high) / 2)


def classification(config: ApplicationsBenchmark) -> dict:
    """Bayes' rule on the test split, over dequantisation seeds and numbers of draws."""
    model = Farmer.from_pretrained("digits")
    held_out, own = digits("validation", model)
    values, labels = digits("test", model)
    classifier = PixelClassifier(load_split("digits", "train", model.config))
    record: dict = {"images": len(labels), "classifier_of_pixels": classifier.accuracy(values, labels), "by_draws": []}
    for draws in sorted({1, 4, config.draws}):
        runs = []
        for seed in config.seeds:
            temperature = fit_temperature(class_log_probs(model, held_out, draws=draws, seed=seed), own)
            log_probs = class_log_probs(model, values, draws=draws, seed=seed)
            run: dict = {"temperature": temperature}
            for name, t in (("plain", 1.0), ("tempered", temperature)):
                probabilities = class_probabilities(log_probs, t)
                run[f"calibration_error_{name}"] = expected_calibration_error(probabilities, labels)
                run[f"cross_entropy_{name}"] = float(F.nll_loss(probabilities.clamp(min=1e-300).log(), labels))
            run["accuracy"] = float((log_probs.argmax(-1) == labels).double().mean())
            runs.append(run)
        record["by_draws"].append(
            {"draws": draws} | {name: mean_and_spread([run[name] for run in runs]) for name in runs[0]}
        )
    tables = {
        "T = 1": reliability(class_probabilities(log_probs), labels),
        f"T = {temperature:.2f}, fitted on validation": reliability(
            class_probabilities(log_probs, temperature), labels
        ),
    }
    record["reliability"] = {name: [row._asdict() for row in table] for name, table in tables.items()}
    wrong = (log_probs.argmax(-1) != labels).nonzero().flatten()
    save_plot(draw_reliability(record), ROOT / "results" / "reliability.svg")
    draw_misread(values[wrong], labels[wrong], log_probs.argmax(-1)[wrong])
    return record


def draw_reliability(record: dict) -> Figure:
    """Accuracy over confidence, without a temperature and with the fitted one; the numbers count images."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="black", lw=0.8, ls="--", label="perfect calibration")
        for marker, height, (name, rows) in zip("os", (-12, 6), record["reliability"].items(), strict=True):
            points = [(row["confidence"], row["accuracy"]) for row in rows]
            axes.plot(*zip(*points, strict=True), marker, ms=7, alpha=0.8, label=name)
            for row, (x, y) in zip(rows, points, strict=True):
                place = (5, height if y else 6)  # above the axis
                axes.annotate(str(row["images"]), (x, y), textcoords="offset points", xytext=place, fontsize=8)
        axes.set(xlabel="confidence: probability of the likeliest class", ylabel="accuracy", title="Reliability")
        axes.legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def draw_misread(wrong: Tensor, labels: Tensor, predicted: Tensor) -> None:
    """The misclassified images, and what they were taken for."""
    pairs = ", ".join(f"{a}→{b}" for a, b in zip(labels.tolist(), predicted.tolist(), strict=True))
    if len(wrong):
        grid = labelled_grids({f"wrong: {pairs}": wrong.double() / 8 - 1}, columns=min(4, len(wrong)), across=1)
        grid.savefig(ROOT / "results" / "misread.png")


def main(argv: list[str] | None = None) -> None:
    config = cli.parse(
        "benchmarks.applications", ApplicationsBenchmark(), "Measure what the likelihood is used for.", argv
    )
    torch.set_num_threads(config.threads)
    out = ROOT / "results" / "applications.json"
    measure = {"inpainting": inpainting, "editing": editing, "anomalies": anomalies, "classification": classification}
    made = provenance(torch.device("cpu"))
    for section in config.sections:
        found = measure[section](config)
        record = read_json(out, dict[str, Any]) if out.exists() else {}
        record |= {**made, section: {**made, "settings": asdict(config), **found}}
        write_json(out, record)
        print(section, json.dumps(found, indent=2)[:4000], flush=True)


if __name__ == "__main__":
    cli.run(main)
