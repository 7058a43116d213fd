"""What guidance does: `python -m benchmarks.guidance`. Writes results/guidance.json and guidance.svg.

1. One dimension, where the target (Eq. 15) is known: the error of the resampling rule over the number of candidates,
   and an improper target, which drifts with it.
2. The shipped digits model, both rules over w: the share of samples read as their class, the Fréchet distance in the
   classifier's scores to the test split, what guidance costs in diversity (the mean distance of two samples of a
   class, over that of two real images), effective sample size and distinct redundant vectors.
3. Many guided samples: how many are not finite before clipping, and the largest pixel value.
"""

from __future__ import annotations

import dataclasses

import matplotlib
import torch
from matplotlib.figure import Figure
from pydantic import PositiveInt
from torch import Tensor

from farmer_ref import Farmer, Guidance
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import PixelClassifier, frechet_distance
from farmer_ref.model.guidance import weighed_candidates
from farmer_ref.model.mixture import GaussianMixture
from farmer_ref.support import cli
from farmer_ref.support.files import write_json
from farmer_ref.support.plots import COLOURS, STYLE, WIDEST, labelled_grids, save_plot
from farmer_ref.support.record import ROOT, mean_and_spread, provenance
from farmer_ref.support.settings import Factor, Whole, settings_class

ROWS = 20_000  # of candidates in one dimension
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
PROPER, IMPROPER = ((1.0, 0.8), (0.0, 1.2), 2.0), ((0.0, 1.2), (0.0, 1.0), 3.0)  # p_c, p_u (mean, std) and w


@settings_class
class GuidanceBenchmark:
    """Scales, seeds and numbers of samples."""

    scales: tuple[Factor, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    """Guidance scales w."""
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """Each draws the samples anew."""
    samples: PositiveInt = 1000
    """Samples of each scale, rule and seed."""
    finite: PositiveInt = 20_000
    """Samples of each rule that are searched for what is not finite, spread over w = 0, 1, 2, 5, 10."""
    threads: PositiveInt = 2
    """CPU threads."""


def normal(mean: float, std: float, batch: int) -> GaussianMixture:
    """`batch` one-dimensional Gaussians."""
    zeros = torch.zeros(batch, 1, 1)
    return GaussianMixture(zeros[..., 0], zeros + mean, zeros + torch.tensor(std).log())


def in_one_dimension() -> dict:
    """Mean and standard deviation of what the rule draws, over s = s_c = s_u candidates."""
    (mean_c, std_c), (mean_u, std_u), w = PROPER
    precision = (1 + w) / std_c**2 - w / std_u**2
    mean, std = ((1 + w) * mean_c / std_c**2 - w * mean_u / std_u**2) / precision, precision**-0.5
    rows = []
    for count in COUNTS:
        row = {"candidates": count}
        for name, (conditional, unconditional, scale) in (("proper", PROPER), ("improper", IMPROPER)):
            guidance = Guidance(scale=scale, candidates_conditional=count, candidates_unconditional=count)
            generator = torch.Generator().manual_seed(count)
            moments = []
            for _ in range(ROWS // 1000):
                pair = normal(*conditional, 1000), normal(*unconditional, 1000)
                z, log_weights = weighed_candidates(
                    *pair, guidance=guidance, counts=(count, count), generator=generator
                )
                weights = log_weights.softmax(1)  # of each candidate to be the one that is drawn
                moments.append(torch.stack([(weights * z[..., 0] ** power).sum(1).mean() for power in (1, 2)]))
            first, second = torch.stack(moments).double().mean(0).tolist()
            row[name] = {"mean": first, "std": (second - first**2) ** 0.5}
        row["error_of_mean_in_stds"] = abs(row["proper"]["mean"] - mean) / std
        row["relative_error_of_std"] = abs(row["proper"]["std"] / std - 1)
        rows.append(row)
    return {
        "proper": PROPER,
        "improper": IMPROPER,
        "exact": {"mean": mean, "std": std},
        "rows_of_candidates": ROWS,
        "rows": rows,
    }


def distance_within_classes(values: Tensor, labels: Tensor) -> float:
    """The mean Euclidean distance of two images (bytes) of one class."""
    means = [torch.pdist(values[labels == label].flatten(1).double()).mean() for label in labels.unique()]
    return float(torch.stack(means).mean())


def sweep(config: GuidanceBenchmark, model: Farmer) -> list[dict]:
    """Both rules over w."""
    classifier = PixelClassifier(load_split("digits", "train", model.config, data_root="data", download=False))
    test = load_split("digits", "test", model.config, data_root="data", download=False)
    real, real_labels = next(batches(test, len(test)))
    labels = torch.arange(config.samples) % model.config.num_classes
    rows = []
    for rule in ("resampling", "naive"):
        for scale in config.scales:
            runs = []
            for seed in config.seeds:
                generator = torch.Generator().manual_seed(seed)
                z, report = model.prior.sample_with_report(
                    labels, Guidance(scale=scale, rule=rule), generator=generator
                )
                values = model.dequantiser.quantise(model.decode(z))
                run = {
                    "seed": seed,
                    "sample_accuracy": classifier.accuracy(values, labels),
                    "frechet_distance": frechet_distance(classifier.scores(values), classifier.scores(real)),
                    "diversity": distance_within_classes(values, labels) / distance_within_classes(real, real_labels),
                }
                run |= {k: float(v.double().mean()) for k, v in report._asdict().items() if v is not None}
                runs.append(run)
            averages = {name: mean_and_spread([run[name] for run in runs]) for name in runs[0] if name != "seed"}
            rows.append({"rule": rule, "scale": scale, **averages, "runs": runs})
            print(rule, scale, {name: round(value["mean"], 4) for name, value in averages.items()}, flush=True)
    return rows


def search_for_what_is_not_finite(config: GuidanceBenchmark, model: Farmer) -> list[dict]:
    """Samples before clipping: how many hold a number that is not finite, and the largest pixel."""
    found = []
    for rule in ("resampling", "naive"):
        for scale in (0.0, 1.0, 2.0, 5.0, 10.0):
            labels = torch.arange(config.finite // 5) % model.config.num_classes
            generator = torch.Generator().manual_seed(0)
            bad, largest = 0, 0.0
            for part in labels.split(500):
                images = model.decode(model.prior.sample(part, Guidance(scale=scale, rule=rule), generator=generator))
                bad += int((~images.isfinite()).flatten(1).any(1).sum())
                largest = max(largest, float(images.abs().max()))
            row = {"rule": rule, "scale": scale, "samples": len(labels), "not_finite": bad, "largest_pixel": largest}
            found.append(row)
            print(row, flush=True)
    return found


def draw_figure(record: dict) -> Figure:
    """The error over candidates, and both rules over w."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDEST, 6.8), layout="constrained")
        axes = figure.subplots(2, 3).flatten()
        one = record["one_dimension"]
        counts = [row["candidates"] for row in one["rows"]]
        axes[0].loglog(counts, [row["error_of_mean_in_stds"] for row in one["rows"]], "o-", label="mean (in std)")
        axes[0].loglog(counts, [row["relative_error_of_std"] for row in one["rows"]], "s-", label="std (relative)")
        axes[0].set(title="1-D, target with\na finite integral", xlabel="candidates of each kind", ylabel="error")
        axes[0].legend(frameon=False, fontsize=8)
        axes[1].semilogx(counts, [row["improper"]["std"] for row in one["rows"]], "o-")
        axes[1].set(title="1-D, target without one:\nno limit", xlabel="candidates of each kind", ylabel="std of draws")
        panels = (
            ("sample_accuracy", "accuracy"),
            ("frechet_distance", "Fréchet distance"),
            ("diversity", "distance within classes,\nreal digits: 1"),
        )
        for axis, (name, label) in zip(axes[2:5], panels, strict=True):
            for rule, colour in zip(("resampling", "naive"), COLOURS, strict=False):
                rows = [row for row in record["sweep"] if row["rule"] == rule]
                means = [row[name]["mean"] for row in rows]
                spread = [row[name]["standard_deviation"] or 0.0 for row in rows]
                axis.errorbar([row["scale"] for row in rows], means, spread, fmt="o-", color=colour, label=rule, ms=4)
            axis.set(xlabel="guidance scale $w$", title=label)
            axis.legend(frameon=False, fontsize=8)
        axes[4].axhline(1.0, color="grey", ls=":")
        rows = [row for row in record["sweep"] if "effective_sample_size" in row]
        scales = [row["scale"] for row in rows]
        axes[5].plot(scales, [row["effective_sample_size"]["mean"] for row in rows], "o-", label="token, of 10")
        axes[5].plot(
            scales, [row["distinct_redundant"]["mean"] for row in rows], "s-", label="distinct redundant, of 16"
        )
        axes[5].set(xlabel="guidance scale $w$", title="candidates that count", ylim=(0, 17))
        axes[5].legend(frameon=False, fontsize=8)
    return figure


def main(argv: list[str] | None = None) -> None:
    config = cli.parse(
        "benchmarks.guidance", GuidanceBenchmark(), "Measure guidance on the shipped digits model.", argv
    )
    torch.set_num_threads(config.threads)
    model = Farmer.from_pretrained("digits")
    with torch.no_grad():
        record = {
            **provenance(torch.device("cpu")),
            **dataclasses.asdict(config),
            "settings_of_guidance": dataclasses.asdict(Guidance()),
            "one_dimension": in_one_dimension(),
            "sweep": sweep(config, model),
            "finite": search_for_what_is_not_finite(config, model),
        }
    out = ROOT / "results" / "guidance.json"
    write_json(out, record)
    save_plot(draw_figure(record), out.with_suffix(".svg"))
    labels = torch.arange(10).repeat(5)
    grids = {}
    for rule, scale in (("resampling", 0.0), ("resampling", 1.0), ("resampling", 4.0), ("naive", 4.0)):
        name = f"{rule}, w = {scale:g}" if scale else "no guidance"
        guidance = Guidance(scale=scale, rule=rule)
        images = model.sample(labels, guidance, generator=torch.Generator().manual_seed(0))
        grids[name] = model.dequantiser.without_noise(images)
    labelled_grids(grids, columns=10).savefig(out.with_name("guidance_samples.png"))


if __name__ == "__main__":
    cli.run(main)
