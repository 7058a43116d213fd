"""What healthy and broken runs look like: `python -m benchmarks.healthy`. Writes results/healthy.json and three .svg.

Healthy: the first steps of the presets that need no download, and samples of the digits on the way. Broken: the same
run of the digits with one fault each: attention without its mask in the flow, log-scales without a bound at a raised
learning rate, a learning rate that is far too large, and a wrong constant in bits/dim. For each: the training curve,
how far the flow's inverse is from the image, and samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from pydantic import PositiveInt
from torch import Tensor

from farmer_ref import Farmer, InputError, train
from farmer_ref.data.sets import batches, load_split
from farmer_ref.model.config import ModelConfig
from farmer_ref.model.transformer import transformer_layers
from farmer_ref.support import cli
from farmer_ref.support.files import read_metrics, write_json
from farmer_ref.support.plots import COLOURS, STYLE, WIDEST, class_labels, image_grid, save_plot
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import settings_class
from farmer_ref.training.presets import PRESETS

PRESET_STEPS = {"tiny": 200, "digits-noise": 300, "photographs": 200}  # beside the digits, whose number is a setting
LARGE_RATE = 0.1  # 50 times the preset's
FAULTS = {
    "no mask": [],
    "no bound on the scale": ["--model.max-log-scale", "None", "--learning-rate", "0.02"],
    "learning rate 50 times too large": ["--learning-rate", str(LARGE_RATE)],
}


@settings_class
class HealthyBenchmark:
    """The length of the runs."""

    steps: PositiveInt = 1000
    """Steps of the healthy run of the digits."""
    broken_steps: PositiveInt = 300
    """Steps of each broken run."""
    threads: PositiveInt = 1
    """CPU threads."""


class Unmasked(Farmer):
    """A model whose flow attends to all tokens, later ones and the token itself included: the classic bug."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        for layer in transformer_layers(self.flow):
            layer.causal = False


def run(preset: str, steps: int, folder: str, *options: str, kind: type[Farmer] = Farmer) -> list[dict[str, float]]:
    """Train a preset for some steps; the lines of its log."""
    often = ["--log-every", "5", "--validate-every", "0"]
    with mock.patch.object(train, "Farmer", kind), contextlib.redirect_stderr(io.StringIO()):
        train.main(["--preset", preset, "--steps", str(steps), "--out", folder, "--device", "cpu", *often, *options])
    return read_metrics(Path(folder))


def curve(records: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Steps and training likelihood, in bits/dim or (Gaussian noise) nats/dim; a non-finite value is left out."""
    unit = "bits_per_dim" if any("bits_per_dim" in record for record in records) else "nats_per_dim"
    points = [(record["step"], record[unit]) for record in records if record.get(unit) is not None]
    steps, values = zip(*points, strict=True)
    return {"unit": unit, "step": list(steps), "value": [round(value, 4) for value in values]}


@torch.no_grad()
def round_trip(model: Farmer) -> float:
    """The largest difference between a test image and the inverse of its latents."""
    values, _ = next(batches(load_split("digits", "test", model.config), 100))
    images = model.dequantiser(values, torch.full(values.shape, 0.5))
    return float((model.decode(model.encode(images)[0]) - images).abs().max())


def finite(value: float | None) -> float | None:
    """The value as JSON can say it: None for one that is not a number."""
    return value if value is not None and math.isfinite(value) else None


def draw(model: Farmer, rows: int) -> Tensor:
    """A grid of samples, one column a class; grey where a broken model has none that is finite."""
    try:
        images = model.sample(class_labels(10, rows), generator=torch.Generator().manual_seed(0))
    except InputError:
        images = torch.zeros(10 * rows, model.config.channels, model.config.image_size, model.config.image_size)
    return model.dequantiser.without_noise(images)


def show(axes: Any, picture: Any, title: str) -> None:
    """A grid of images, pixel by pixel."""
    axes.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255, interpolation="none")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def healthy_curves(curves: dict[str, dict[str, Any]]) -> Figure:
    """One panel a preset."""
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(wspace=0.1)  # a share of panels, which are narrow here
        figure = Figure(figsize=(WIDEST, 2.5), layout=layout)
        for axes, (name, found) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
            axes.plot(found["step"], found["value"], lw=1.3)
            if found["unit"] == "bits_per_dim":
                axes.axhline(math.log2(PRESETS[name].model.levels), color=COLOURS[6], ls=":", lw=1.2)
            axes.set(title=name, xlabel="step", ylabel=found["unit"].replace("_per_", "/"))
    return figure


def broken_runs(right: dict[str, Any], broken: dict[str, dict[str, Any]], pictures: dict[str, Any]) -> Figure:
    """A row for each fault: its curve beside the healthy one, and its samples."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.1 * len(broken)), layout="constrained")
        for (left, grid), (name, found) in zip(
            figure.subplots(len(broken), 2, width_ratios=[1, 1.35]), broken.items(), strict=True
        ):
            last = found["curve"]["step"][-1]
            shown = [(s, v) for s, v in zip(right["step"], right["value"], strict=True) if s <= last]
            left.plot(*zip(*shown, strict=True), color="0.6", label="healthy")
            left.plot(found["curve"]["step"], found["curve"]["value"], color=COLOURS[1], label="broken")
            left.set(title=name, ylabel="bits/dim", xlabel="step")
            left.set_ylim(max(-6, min(min(found["curve"]["value"]), 2) - 0.5), 8)
            lost = found["round_trip"]
            show(grid, pictures[name], "samples" if lost is None else f"samples; round trip off by {lost:.1g}")
        figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.healthy", HealthyBenchmark(), "Train healthy and broken runs and draw them.", argv)
    torch.set_num_threads(config.threads)
    record = {**provenance(torch.device("cpu")), **dataclasses.asdict(config)}
    results, pictures = ROOT / "results", {}
    with tempfile.TemporaryDirectory() as place:
        logs = {
            name: curve(run(name, steps, f"{place}/{name}", "--sample-every", "0"))
            for name, steps in PRESET_STEPS.items()
        }
        healthy = f"{place}/digits"
        found = run("digits", config.steps, healthy, "--sample-every", "100")
        record["healthy"] = {"digits": curve(found), **logs}
        torch.manual_seed(0)
        untrained = Farmer(PRESETS["digits"].model).eval()
        untrained.pixels.fit(load_split("digits", "train", untrained.config).values)
        stages = {"step 0": image_grid(draw(untrained, 4), columns=10)}
        for step in (100, config.steps):
            stages[f"step {step:,}"] = Image.open(f"{healthy}/samples/step-{step:07d}.png")
        shipped = Farmer.from_pretrained("digits")
        stages[f"the end, step {PRESETS['digits'].steps:,}"] = image_grid(draw(shipped, 4), columns=10)
        record["round_trip"] = round_trip(Farmer.from_pretrained(healthy))
        record["broken"] = {}
        for name, options in FAULTS.items():
            folder, kind = f"{place}/{name}", Unmasked if name == "no mask" else Farmer
            found = run("digits", config.broken_steps, folder, "--sample-every", "0", *options, kind=kind)
            model = kind.from_pretrained(folder)
            record["broken"][name] = {"options": options, "curve": curve(found), "round_trip": round_trip(model)}
            pictures[name] = image_grid(draw(model, 3), columns=10)
    right = record["healthy"]["digits"]
    wrong = {**right, "value": [round(value + 1, 4) for value in right["value"]]}  # log2 L in place of log2(L/2)
    name = "wrong constant: a cell of width 1/L"
    record["broken"][name] = {"options": [], "curve": wrong, "round_trip": None}
    pictures[name] = stages[f"step {config.steps:,}"]
    broken = {name: {**run, "round_trip": finite(run["round_trip"])} for name, run in record["broken"].items()}
    write_json(results / "healthy.json", {**record, "broken": broken})
    save_plot(healthy_curves(record["healthy"]), results / "healthy.svg")
    save_plot(broken_runs(right, record["broken"], pictures), results / "healthy_broken.svg")
    figure = Figure(figsize=(9, 4.1), layout="constrained")
    for axes, (title, picture) in zip(figure.subplots(2, 2).flatten(), stages.items(), strict=True):
        show(axes, picture, title)
    save_plot(figure, results / "healthy_samples.svg")
    for name, found in record["broken"].items():
        print(f"{name}: {found['curve']['value'][-1]:.2f} bits/dim, round trip off by {found['round_trip']}")


if __name__ == "__main__":
    cli.run(main)
