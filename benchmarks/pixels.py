"""Pixels in [-1, 1], through their own histogram, and with learned noise, on digits: `python -m benchmarks.pixels`.

All train with the digits preset at equal steps and several seeds. Bits/dim and the accuracy of samples, with guidance
and without, are of the validation split: the test split chooses nothing. Writes results/pixels.json; with `--rows`,
the other rows stay as that file has them.

`--figure-only` draws results/pixels.svg, which needs no training: one pixel in three coordinates (linear, logit,
histogram), and what the best Gaussian loses in each.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from farmer_ref import PRESETS, Farmer, Guidance, train
from farmer_ref.data.sets import ImageSet, load_split
from farmer_ref.evaluation.metrics import PixelClassifier, evaluate_likelihood, frechet_distance, sample_values
from farmer_ref.model.pixels import HistogramPixels
from farmer_ref.support import cli
from farmer_ref.support.errors import require
from farmer_ref.support.files import write_json
from farmer_ref.support.plots import COLOURS, STYLE, WIDEST, save_plot
from farmer_ref.support.record import ROOT, over_seeds, provenance
from farmer_ref.support.settings import Whole, settings_class

ROWS = {
    "linear": {"pixels": "linear", "noise-width": 0},
    "histogram": {"pixels": "histogram", "noise-width": 0},
    "histogram, learned noise": {"pixels": "histogram", "noise-width": 16},
}
FIGURES = ("bits_per_dim", "sample_accuracy", "guided_sample_accuracy", "frechet_distance")
DATA = {"digits": "digits", "mnist-small": "mnist"}  # whose histograms are looked at, and the presets of their models
POINTS = 400_000  # of the numerical integrals


@settings_class
class PixelsConfig:
    """What is compared, and for how long."""

    rows: tuple[str, ...] = tuple(ROWS)
    """What to train."""
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """One training run per seed and row."""
    steps: PositiveInt = 2000
    """Training steps of each run."""
    draws: PositiveInt = 16
    """Dequantisations per validation image."""
    samples: PositiveInt = 1000
    """Samples to classify, guided and not."""
    scale: PositiveFloat = 1.0
    """Guidance scale of the guided samples."""
    threads: PositiveInt = 1
    """CPU threads."""
    figure_only: bool = False
    """Draw the figure, and train nothing."""

    def __post_init__(self) -> None:
        for row in self.rows:
            require(row in ROWS, "rows", row, "; ".join(ROWS))


def train_and_score(config: PixelsConfig, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train the digits preset with the pixels of a row, and measure it on the validation split."""
    quiet = ["--validate-every", "0", "--sample-every", "0", "--device", "cpu"]
    model_flags = [text for name, value in ROWS[row].items() for text in (f"--model.{name}", str(value))]
    run = ["--preset", "digits", "--steps", str(config.steps), "--seed", str(seed), "--out", str(folder)]
    train.main([*run, *model_flags, *quiet])
    model = Farmer.from_pretrained(folder)
    real, validation = (load_split("digits", split, model.config) for split in ("train", "validation"))
    classifier, labels = PixelClassifier(real), torch.arange(config.samples) % model.config.num_classes
    drawn = sample_values(model, labels, seed=seed)
    guided = sample_values(model, labels, seed=seed, guidance=Guidance(scale=config.scale))
    return {
        "bits_per_dim": evaluate_likelihood(model, validation, draws=config.draws, seed=0).bits_per_dim,
        "sample_accuracy": classifier.accuracy(drawn, labels),
        "guided_sample_accuracy": classifier.accuracy(guided, labels),
        "frechet_distance": frechet_distance(classifier.scores(validation.values), classifier.scores(drawn)),
    }


# -- one pixel in three coordinates ------------------------------------------------------------------------------------


def pixel_densities(mass: Tensor, *, alpha: float = 1e-6) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The density of one dequantised pixel with level probabilities `mass` (L,) in each coordinate: points, density.

    `alpha` keeps the logit finite, as in RealNVP.
    """
    levels = len(mass)
    below = (mass.cumsum(0) - mass).numpy()
    place = (np.arange(POINTS) + 0.5) * levels / POINTS  # v + u
    level = place.astype(int)
    density, unit = mass.numpy()[level] * levels, place / levels  # of the pixel as a number in [0, 1]
    inside = alpha + (1 - 2 * alpha) * unit
    rank = torch.from_numpy(below[level] + mass.numpy()[level] * (place - level))
    normal = torch.special.ndtri(rank).numpy()
    slope = density / (np.exp(-(normal**2) / 2) / math.sqrt(2 * math.pi))
    return {
        "linear, [-1, 1]": (2 * unit - 1, density / 2),
        "logit": (np.log(inside / (1 - inside)), density * inside * (1 - inside) / (1 - 2 * alpha)),
        "histogram": (normal, density / slope),
    }


def lost_bits(mass: Tensor, level: int) -> dict[str, float]:
    """Bits that the best Gaussian loses to the exact density of a pixel that is known to have this level.

    -h + log2(2 pi e var) / 2, with h the entropy inside the level's cell in these coordinates.
    """
    levels, found = len(mass), {}
    for name, (points, density) in pixel_densities(mass).items():
        cell = slice(level * POINTS // levels, (level + 1) * POINTS // levels)
        x, weight = points[cell], 1 / (POINTS // levels)  # points are spread evenly over the cell of probability 1
        entropy = -np.log2(density[cell] / float(mass[level])).sum() * weight
        found[name] = 0.5 * math.log2(2 * math.pi * math.e * x.var()) - entropy
    return found


def histogram_of(split: ImageSet) -> Tensor:
    """The probabilities (L,) of the grey levels of a split, with one count more for each."""
    pixels = HistogramPixels(1, split.levels)
    pixels.fit(split.values)
    return pixels.counts[0].double() / pixels.counts.sum()


def figure(mass: Tensor) -> Figure:
    """One pixel in three coordinates, with what a Gaussian loses on a pixel that is black for certain."""
    lost = lost_bits(mass, 0)
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(WIDEST, 2.9), layout="constrained")
        for axes, (name, (points, density)) in zip(drawn.subplots(1, 3), pixel_densities(mass).items(), strict=True):
            black = slice(0, POINTS // len(mass))
            axes.fill_between(points[black], density[black], color=COLOURS[1], alpha=0.6, label="black")
            axes.plot(points, density, color=COLOURS[0], lw=1.2)
            axes.set(title=f"{name}\n{lost[name]:.2f} bits lost on black", xlabel="coordinate", ylim=0)
        drawn.axes[0].set(ylabel="density", yscale="log", ylim=1e-3)
        drawn.axes[0].legend(loc="upper right")  # among so many points, the best place takes long to find
    return drawn


def main(argv: list[str] | None = None) -> None:
    """Train, measure, write; or draw."""
    config = cli.parse(
        "benchmarks.pixels", PixelsConfig(), "Two coordinates of the pixels, and learned noise, on digits.", argv
    )
    torch.set_num_threads(config.threads)
    masses = {name: histogram_of(load_split(name, "train", PRESETS[preset].model)) for name, preset in DATA.items()}
    save_plot(figure(masses["mnist-small"]), ROOT / "results" / "pixels.svg")
    if config.figure_only:
        return
    path, made = ROOT / "results" / "pixels.json", provenance(torch.device("cpu"))
    lost = {name: lost_bits(mass, 0) for name, mass in masses.items()}
    kept = {} if set(config.rows) == {*ROWS} else json.loads(path.read_text(encoding="utf-8"))
    of_the_file = {key: kept[key] for key in made if key in kept}  # where a row does not say how it was made
    rows = {row: {"made": of_the_file} | kept[row] for row in ROWS if row in kept}
    with tempfile.TemporaryDirectory() as temporary:
        for number, row in enumerate(config.rows):
            runs: list[dict[str, Any]] = []
            for seed in config.seeds:
                runs.append(train_and_score(config, row, seed, Path(temporary) / f"{number}-{seed}"))
                print(json.dumps({"row": row, "seed": seed, **runs[-1]}), flush=True)
            rows[row] = {name: over_seeds([run[name] for run in runs]) for name in FIGURES} | {"made": made}
    write_json(path, {**made, "settings": dataclasses.asdict(config), "lost_bits": lost, **rows})


if __name__ == "__main__":
    cli.run(main)
