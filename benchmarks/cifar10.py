"""CIFAR-10 on a CPU: `python -m benchmarks.cifar10 --minutes 120`. Writes results/cifar10-small.json, .svg and .png.

Trains the preset `cifar10-small`, or goes on with a run that was interrupted; then scores the test split, once, and
draws the curve and a grid of samples. What others have published stands beside.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt

from benchmarks.mnist import curve_of, parameters
from farmer_ref import Farmer, Guidance, train
from farmer_ref.data.sets import load_split
from farmer_ref.evaluation.metrics import evaluate_likelihood
from farmer_ref.support import cli
from farmer_ref.support.files import write_json
from farmer_ref.support.plots import COLOURS, STYLE, class_labels, image_grid, save_picture, save_plot
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import settings_class
from farmer_ref.training.checkpoint import last_state
from farmer_ref.training.runs import saved_settings

PRESET = "cifar10-small"
PUBLISHED = (  # model, bits/dim, remark
    ("JetFormer, PyTorch port", 3.698, "42.2M parameters, 100 epochs in 8 hours; github.com/alexojica/JetFormer"),
    ("RealNVP", 3.49, "Dinh et al. 2017"),
    ("Glow", 3.35, "Kingma and Dhariwal 2018"),
    ("Residual Flow", 3.28, "Chen et al. 2019"),
)
ROWS = 4  # of the grid of samples


@settings_class
class Cifar10Config:
    """The run."""

    minutes: PositiveFloat = 120.0
    """Minutes of training; the schedule is fitted to them."""
    run: str = f"runs/{PRESET}"
    """The run's folder; a finished run is not trained again."""
    data_root: str = "data"
    """Where torchvision keeps its data sets."""
    download: bool = True
    """Download a missing data set."""
    processes: PositiveInt = 1
    """Processes that share each batch; where there are several, with one thread each: what takes a core now and then
    stops one of them, but all threads of a single process."""
    threads: PositiveInt = 2
    """CPU threads of a single process, and of scoring."""


def trained(config: Cifar10Config) -> None:
    """Train the preset, or resume its run."""
    place = ["--out", config.run, "--resume", "--data-root", config.data_root]
    place += [] if config.download else ["--no-download"]
    arguments = ["--preset", PRESET, *place, "--max-minutes", str(config.minutes), "--device", "cpu"]
    if config.processes == 1:
        train.main([*arguments, "--threads", str(config.threads)])
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        subprocess.run([*torchrun, str(config.processes), "-m", "farmer_ref.train", *arguments], check=True)


def measured(config: Cifar10Config) -> dict[str, Any]:
    """The run's size and length, its curve, and its likelihood on the test split with one draw of the noise."""
    run = Path(config.run)
    model, settings, state = Farmer.from_pretrained(run), saved_settings(run), last_state(run)
    options = {"data_root": config.data_root, "download": config.download}
    images = len(load_split("cifar10", "train", model.config, **options))
    test = evaluate_likelihood(model, load_split("cifar10", "test", model.config, **options), draws=1)
    curve = curve_of(run)
    generator = torch.Generator().manual_seed(settings.seed)
    samples = model.sample(class_labels(10, ROWS), Guidance(scale=1.0), generator=generator)
    grid = image_grid(model.dequantiser.without_noise(samples), columns=10, cell=64)
    save_picture(grid, ROOT / "results" / f"{PRESET}_samples.png")
    return {
        "parameters": parameters(model),
        "training_images": images,
        "training_steps": state.step,
        "training_minutes": state.seconds / 60,
        "epochs": state.step * settings.batch_size / images,
        "processes": config.processes,
        "validation_bits_per_dim": curve[-1]["validation_bits_per_dim"],
        "test": dataclasses.asdict(test),
        "published": [dict(zip(("model", "bits_per_dim", "note"), row, strict=True)) for row in PUBLISHED],
        "settings": dataclasses.asdict(dataclasses.replace(settings, out=f"runs/{PRESET}", data_root="data")),
        "curve": curve,
    }


def draw(record: dict[str, Any]) -> Figure:
    """Bits/dim of validation images over the training images seen, with published figures as lines."""
    size = record["settings"]["batch_size"]
    points = [line for line in record["curve"] if "validation_bits_per_dim" in line]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        seen = [line["step"] * size / 1000 for line in points]
        axes.plot(seen, [line["validation_bits_per_dim"] for line in points], marker="o", ms=4)
        for published in record["published"]:
            axes.axhline(published["bits_per_dim"], color=COLOURS[6], linestyle="--", lw=1)
            label = f"{published['model']}, {published['bits_per_dim']:g}"
            end = (1, published["bits_per_dim"])  # the right one: the curve comes from above on the left
            place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate(label, end, (-4, 2), ha="right", va="bottom", **place)
        axes.set(xlabel="training images seen, in thousands", ylabel="bits/dim", xlim=(0, None))
    return figure


def main(argv: list[str] | None = None) -> None:
    """Train, measure, draw."""
    config = cli.parse("benchmarks.cifar10", Cifar10Config(), "Train a small model of CIFAR-10 on a CPU.", argv)
    made = provenance(torch.device("cpu"))
    trained(config)
    torch.set_num_threads(config.threads)
    record = {**made, **measured(config)}
    write_json(ROOT / "results" / f"{PRESET}.json", record)
    save_plot(draw(record), ROOT / "results" / f"{PRESET}.svg")
    print(
        json.dumps({name: record[name] for name in ("training_steps", "training_minutes", "epochs", "test")}, indent=2)
    )


if __name__ == "__main__":
    cli.run(main)
