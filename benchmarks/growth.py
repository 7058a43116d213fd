"""What grows with what: `python -m benchmarks.growth`. Writes results/growth.json and growth.svg.

Seconds and memory of a training step, of a sequential sample, of one sweep of the parallel inverse and of a student's
pass, against the tokens N of an image, the channels D of a token, and the components of the shared mixture times its
channels, K R; one of them at a time. Each with its exponent: the slope of its last stretch on logarithmic axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from pydantic import PositiveFloat, PositiveInt
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import seconds_of
from farmer_ref.model.config import ModelConfig
from farmer_ref.model.farmer import Farmer, negative_log_likelihood
from farmer_ref.model.student import OneStepStudent
from farmer_ref.support import cli
from farmer_ref.support.files import write_json
from farmer_ref.support.plots import STYLE, WIDEST, save_plot
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import settings_class

BASE = ModelConfig(
    image_size=16,
    channels=3,
    patch_size=2,
    flow_blocks=2,
    flow_layers=2,
    flow_width=64,
    prior_layers=2,
    prior_width=64,
    head_dim=32,
    informative=4,
    components=8,
    redundant_components=8,
    condition_repeats=1,
)
AXES: dict[str, tuple[str, list[ModelConfig]]] = {
    "N": (
        "tokens $N$",
        [dataclasses.replace(BASE, image_size=size) for size in (8, 16, 32, 64)],
    ),
    "D": (
        "channels $D$ of a token",
        [dataclasses.replace(BASE, image_size=8 * p, patch_size=p, informative=p * p) for p in (2, 4, 8, 16)],
    ),
    "K R": (
        "components × channels, $K R$",
        [dataclasses.replace(BASE, redundant_components=components) for components in (8, 64, 512, 4096)],
    ),
}
LABEL_HEIGHT = 0.3  # of a label of the figure, in decades
WORKS = ("training step", "sequential sample", "one sweep", "student's pass")
THEORY = {  # exponents from the smallest to the largest: from the term that does not grow to the one that does
    "N": {"training step": "1 to 2", "sequential sample": "1 to 2", "one sweep": "1 to 2", "student's pass": "1 to 2"},
    "D": dict.fromkeys(WORKS, "0 to 1"),
    "K R": {"training step": "0 to 1", "sequential sample": "0 to 1", "one sweep": "0", "student's pass": "0"},
}


@settings_class
class GrowthBenchmark:
    """The measurements."""

    images: PositiveInt = 4
    """Images of a training step; a sample, a sweep and a student's pass have one."""
    seconds: PositiveFloat = 0.4
    """Each piece of work is repeated for so long, and the median taken."""


def value(model: ModelConfig, axis: str) -> int:
    """The size that an axis shows."""
    redundant = model.token_channels - model.informative
    return {"N": model.tokens, "D": model.token_channels, "K R": model.redundant_components * redundant}[axis]


def works(shape: ModelConfig, images: int) -> dict[str, Callable[[], object]]:
    """The four pieces of work of a model of this shape."""
    torch.manual_seed(0)
    model = Farmer(shape)
    student = OneStepStudent.from_teacher(model.flow)
    batch = torch.rand(images, shape.channels, shape.image_size, shape.image_size) * 2 - 1
    labels, z = torch.zeros(images, dtype=torch.long), torch.randn(1, shape.tokens, shape.token_channels)
    block = model.flow.blocks[0]
    positions = block.embedded_positions(None)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        negative_log_likelihood(model(batch, labels), shape.dimensions).backward()

    @torch.no_grad()
    def sweep() -> None:
        shift, log_scale = block.shift_and_log_scale(z, positions)
        z * torch.exp(-log_scale) + shift

    @torch.no_grad()
    def student_pass() -> None:
        student(z)

    done = (step, lambda: model.sample(labels[:1]), sweep, student_pass)
    return dict(zip(WORKS, done, strict=True))


def peak_memory_of(work: Callable[[], object]) -> int:
    """The largest number of bytes that the tensors made by a call hold at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def growth(config: GrowthBenchmark, axis: str) -> dict[str, Any]:
    """Seconds and memory of every piece of work along one axis, and the exponents."""
    shapes = AXES[axis][1]
    found: dict[str, Any] = {"values": [value(shape, axis) for shape in shapes], "work": {}}
    rows: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "bytes": []} for name in WORKS}
    for shape in shapes:
        for name, work in works(shape, config.images).items():
            rows[name]["seconds"].append(seconds_of(work, config.seconds))
            rows[name]["bytes"].append(peak_memory_of(work))
    for name, row in rows.items():
        exponents = {f"exponent_of_{kind}": slopes(found["values"], numbers)[-1] for kind, numbers in row.items()}
        found["work"][name] = {**row, **exponents, "theory": THEORY[axis][name]}
        print(
            f"{axis:4s} {name:18s} {', '.join(f'{1000 * s:.1f}' for s in row['seconds'])} ms, "
            f"{', '.join(f'{b / 2**20:.2f}' for b in row['bytes'])} MiB; "
            f"exponents {exponents['exponent_of_seconds']:.2f} and {exponents['exponent_of_bytes']:.2f}, "
            f"theory {THEORY[axis][name]}",
            flush=True,
        )
    return found


def slopes(values: list[int], numbers: list[float]) -> list[float]:
    """The exponent of each stretch: log of the ratio of numbers over log of the ratio of values."""
    points = pairwise(zip(values, numbers, strict=True))
    return [math.log(max(after, 1e-12) / max(before, 1e-12)) / math.log(b / a) for (a, before), (b, after) in points]


def apart(heights: dict[Any, float]) -> dict[Any, float]:
    """The heights of labels, moved up where they would cover one another."""
    placed, lowest = {}, -math.inf
    for label, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[label] = max(height, lowest)
        lowest = placed[label] + LABEL_HEIGHT
    return placed


def draw(found: dict[str, Any]) -> Figure:
    """Seconds above, memory below, a column for each axis; the exponents beside the ends of the lines."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDEST, 5.6), layout="constrained")
        panels = figure.subplots(2, len(AXES), sharex="col", sharey="row")
        for column, (axis, (heading, _)) in enumerate(AXES.items()):
            for row, (kind, unit) in enumerate((("seconds", 1000), ("bytes", 2**-20))):
                axes = panels[row][column]
                values = found[axis]["values"]
                ends = {}
                for name, measured in found[axis]["work"].items():
                    numbers = [number * unit for number in measured[kind]]
                    (line,) = axes.plot(values, numbers, marker="o", ms=4, label=name)
                    text = f"{round(measured[f'exponent_of_{kind}'], 1) + 0.0:.1f}"  # never -0.0
                    ends[text, line.get_color()] = math.log10(numbers[-1])
                for (text, colour), height in apart(ends).items():
                    place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
                    axes.annotate(text, (values[-1], 10**height), **place, fontsize=8, color=colour)
                axes.set(xscale="log", yscale="log")
                axes.xaxis.set_major_locator(FixedLocator(values))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.set_xticks(values, [f"{v:,}" for v in values])
            panels[1][column].set_xlabel(heading)
        panels[0][0].set_ylabel("milliseconds")
        panels[1][0].set_ylabel("MiB")
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    return figure


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.growth", GrowthBenchmark(), "Time and memory as the work grows.", argv)
    torch.set_num_threads(1)
    settings = {**dataclasses.asdict(config), "threads": 1, "model": dataclasses.asdict(BASE)}
    made, found = provenance(torch.device("cpu")), {axis: growth(config, axis) for axis in AXES}
    results = ROOT / "results"
    write_json(results / "growth.json", {**made, "settings": settings, "axes": found})
    save_plot(draw(found), results / "growth.svg")


if __name__ == "__main__":
    cli.run(main)
