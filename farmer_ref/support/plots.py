"""Figures that several places draw, such as sample grids and training curves, in one matplotlib style."""

from __future__ import annotations

import io
import itertools
import math
import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis, Tick
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from PIL import Image
from torch import Tensor

from farmer_ref.support.files import read_metrics, replace_file

WIDEST = 8.4  # inches: what a page of the book shows in its full size, so that text stays legible
LABEL = 32  # characters of a row's name in a line
GAP = 4  # points between labels below an axis
APART = 12  # points between a panel and what is written beside the next one
HASHED = re.compile(rb"\b[mp][0-9a-f]{10}\b")  # names in an SVG: hashes of floats, whose last bits are the processor's
SYMBOLS = re.compile(r"(?<!\$)\b[A-Z]_[A-Z]\b(?:\s~\sN\(0,\sI\))?|(?<!\$)\b[IK]\s=\s\d+")  # in the names of rows
FACTOR = re.compile(r"\bx (?=\d)")  # there, too
# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.axisbelow": True,  # grid lines behind bars
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.wspace": 0.06,  # what is written beside a panel keeps away from the panel before it
    "figure.dpi": 120,
    "font.size": 10,
    "grid.alpha": 0.3,
    "image.interpolation": "none",  # pixels stay pixels, in vector graphics too
    "lines.linewidth": 1.8,
}


def to_bytes(images: Tensor) -> Tensor:
    """Images (B,C,H,W) in [-1, 1] as bytes 0..255 of the same shape, on the CPU."""
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def image_grid(images: Tensor, columns: int, *, cell: int = 40, gap: int = 2) -> Image.Image:
    """A grid of images (B,C,H,W) in [-1, 1], `columns` to a row; small ones are enlarged to about `cell` pixels."""
    batch, channels, height, width = images.shape
    factor = max(1, round(cell / height))
    large = to_bytes(images).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    rows = math.ceil(batch / columns)
    tall, wide = height * factor + gap, width * factor + gap
    canvas = np.full((rows * tall + gap, columns * wide + gap, channels), 128, dtype=np.uint8)
    for i, image in enumerate(large):
        top, left = (i // columns) * tall + gap, (i % columns) * wide + gap
        canvas[top : top + height * factor, left : left + width * factor] = image.permute(1, 2, 0).numpy()
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def labelled_grids(
    grids: dict[str, Tensor], columns: int, *, across: int = 2, marked: dict[str, Tensor] | None = None
) -> Figure:
    """Several grids of images (B,C,H,W) in [-1, 1], each with its name as title, `across` of them in a row.

    `marked` has, by the name of a grid, which of its images (B,) get an orange frame.
    """
    pictures = {name: np.asarray(image_grid(images, columns)) for name, images in grids.items()}
    down = math.ceil(len(grids) / across)
    height, width = next(iter(pictures.values())).shape[:2]
    with matplotlib.rc_context(STYLE):
        size = (4.2 * across, down * (4.2 * height / width + 0.35))
        figure = Figure(figsize=size, layout="constrained")
        for axes in (spots := figure.subplots(down, across, squeeze=False).flatten()):
            axes.set_axis_off()
        for axes, (name, picture) in zip(spots, pictures.items(), strict=False):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.set_title(name, fontsize=10)
            rows = math.ceil(len(grids[name]) / columns)
            tall, wide = (picture.shape[0] - 2) / rows, (picture.shape[1] - 2) / columns  # each with a gap of 2
            for place in (marked or {}).get(name, torch.zeros(0)).nonzero().flatten().tolist():
                corner = (place % columns * wide + 0.5, place // columns * tall + 0.5)
                axes.add_patch(Rectangle(corner, wide, tall, fill=False, ec=COLOURS[1], lw=1.6))
    return figure


def set_name(name: str) -> str:
    """The name of a row in lines of at most `LABEL` characters, its symbols set as mathematics and in one line each."""
    together = SYMBOLS.sub(lambda symbol: symbol[0].replace(" ", "\u00a0"), FACTOR.sub("×\u00a0", name))
    lines = SYMBOLS.sub(r"$\g<0>$", textwrap.fill(together, LABEL))
    return lines.replace("\u00a0~\u00a0", r" \sim ").replace("\u00a0", " ")


def varied(rows: list[dict[str, Any]], measures: dict[str, Any]) -> dict[str, Any]:
    """The measures that are not the same in all rows; where there is none, all measures."""
    found = {name: head for name, head in measures.items() if len({tuple(row[name]["seeds"]) for row in rows}) > 1}
    return found or measures


def comparison(rows: list[dict[str, Any]], measures: dict[str, str]) -> Figure:
    """Rows of figures side by side, one panel per measure (its key in a row, and its heading).

    A row has a name and, for every measure, a mean and the values of all seeds, drawn as small dots. A measure that is
    the same in all rows has no panel. If the rows were timed, a last panel shows the time from noise to image (prior
    and inverse) as bars, and the forward pass as a mark.
    """
    timed = "seconds_per_image" in rows[0]
    measures = varied(rows, measures)
    names = [set_name(row["name"]) for row in rows]
    with matplotlib.rc_context(STYLE):
        count = len(measures) + timed
        height = 1.6 + (0.42 if "\n" in "".join(names) else 0.3) * len(rows)
        figure = Figure(figsize=(min(3 + 2.4 * count, WIDEST), height), layout="constrained")
        panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
        for axes, (measure, heading) in zip(panels, measures.items(), strict=False):
            share = measure.endswith("accuracy")
            unit = 100 if share else 1
            for place, row in enumerate(rows):
                values = [value * unit for value in row[measure]["seeds"]]
                if len(values) > 1:
                    axes.plot(row[measure]["mean"] * unit, place, "|", color=COLOURS[1], ms=14, mew=2.5)
                axes.plot(values, [place] * len(values), "o", color=COLOURS[5], ms=4)
            axes.set_title(heading.replace(" (", f"{', %' if share else ''}\n("), fontsize=10)
            axes.locator_params(axis="x", nbins=3 if share or count > 2 else 4)  # long numbers must not touch
        if timed:
            forward, prior, inverse = (
                [row["seconds_per_image"][part] * 1000 for row in rows] for part in ("forward", "prior", "back")
            )
            places = range(len(rows))
            panels[-1].barh(places, prior, height=0.5, color=COLOURS[5], label="prior")
            panels[-1].barh(places, inverse, height=0.5, left=prior, color=COLOURS[0], label="inverse")
            panels[-1].plot(forward, places, "|", color=COLOURS[6], ms=14, mew=2.5, label="forward")
            panels[-1].set_title("ms per image\n(lower is better)", fontsize=10)
            figure.legend(frameon=False, fontsize=8, loc="outside lower right", ncols=3)
        panels[0].set_yticks(range(len(rows)), names)
        panels[0].margins(y=0.6 / len(rows))
        panels[0].invert_yaxis()
        figure.supxlabel("dot: one seed; line: mean of the seeds", fontsize=8)
    return figure


def labelled(axis: Axis) -> list[Tick]:
    """The ticks of an axis that are drawn with a label."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [tick for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]


def crowded(figure: Figure) -> set[Axes]:
    """Axes with a tick label below them that comes nearer than `GAP` to another, be it of a neighbour."""
    figure.draw_without_rendering()
    margin = GAP / 2 * figure.dpi / 72
    labels = [(axes, tick.label1) for axes in figure.axes for tick in labelled(axes.xaxis)]
    boxes = [(axes, label.get_window_extent().padded(margin)) for axes, label in labels]
    pairs = itertools.combinations(boxes, 2)
    return {axes for (one, box), (other, near) in pairs if box.overlaps(near) for axes in (one, other)}


def texts_of(axes: Axes) -> list[Text]:
    """What is written in a panel and around it, but for its legend and the tick labels below it."""
    texts: list[Text] = [axes.title, *axes.texts]
    if axes.axison:
        texts += [axes.xaxis.label, axes.yaxis.label, *(tick.label1 for tick in labelled(axes.yaxis))]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def collisions(figure: Figure) -> list[str]:
    """What of a panel comes nearer than `APART` to the next panel or to what is written there, and what covers what."""
    figure.draw_without_rendering()
    point = figure.dpi / 72
    found = [f"a label below {axes.get_title()!r}" for axes in crowded(figure)]
    panels = [axes for axes in figure.axes if axes.get_visible()]
    boxes = {axes: [(text.get_text(), text.get_window_extent()) for text in texts_of(axes)] for axes in panels}
    for axes in panels:
        pairs = itertools.combinations(boxes[axes], 2)
        found += [f"{one!r} covers {other!r}" for (one, box), (other, near) in pairs if box.overlaps(near)]
    for one, other in itertools.permutations(panels, 2):
        frame = other.get_window_extent()
        if frame.overlaps(one.get_window_extent()):  # one inside the other, or two on one place
            continue
        around = [(f"the panel {other.get_title()!r}", frame), *boxes[other]]
        found += [
            f"{text!r} is near {near!r}"
            for text, box in boxes[one]
            for near, place in around
            if box.padded(APART * point, 0).overlaps(place)
        ]
    return found


def in_lines(text: str, lines: int) -> str:
    """A text in at most so many lines, as narrow as its words allow."""
    widths = (textwrap.fill(text, width, break_long_words=False) for width in range(1, len(text) + 1))
    return next((filled for filled in widths if filled.count("\n") < lines), text)


def keep_labels_apart(figure: Figure) -> None:
    """Leave out every other number below axes, and break the names there into lines, until no two come too near."""
    named = [axes for axes in figure.axes if isinstance(axes.xaxis.get_major_locator(), FixedLocator)]
    for lines in (2, 3, 4):
        for axes in crowded(figure):
            if axes in named:
                names = [" ".join(label.get_text().split()) for label in axes.get_xticklabels()]
                axes.set_xticks(axes.get_xticks(), [in_lines(name, lines) for name in names])
            elif len(ticks := labelled(axes.xaxis)) > 2:
                axes.set_xticks([tick.get_loc() for tick in ticks][::2])


def save_picture(picture: Image.Image, path: Path) -> None:
    """A picture as a PNG file."""
    replace_file(path, lambda temporary: picture.save(temporary, format="PNG"))


def save_plot(figure: Figure, path: Path) -> None:
    """A figure as vector graphics, of the same bytes each time, whose labels do not touch."""
    keep_labels_apart(figure)
    drawn, numbers = io.BytesIO(), dict[bytes, int]()
    with matplotlib.rc_context({"svg.hashsalt": "farmer"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = HASHED.sub(lambda name: b"n%d" % numbers.setdefault(name[0], len(numbers)), drawn.getvalue())
    replace_file(path, lambda file: file.write_bytes(svg))


def class_labels(num_classes: int, per_class: int, *, most: int = 10) -> Tensor:
    """Labels of a grid with one column per class (the first `most`) and `per_class` rows; -1 without classes."""
    if not num_classes:
        return torch.full((per_class * most,), -1)
    return torch.arange(min(num_classes, most)).repeat(per_class)


def drawable(value: float) -> float:
    """A number within the range in which axes can be divided."""
    return max(-1e30, min(value, 1e30))


def training_curve(run: Path) -> Figure:
    """Training and validation likelihood over steps, from a run's metrics.jsonl.

    With Gaussian noise, both are those of images with the noise of the step, whose size is drawn below.
    """
    records = read_metrics(run)

    def points(name: str) -> list[tuple[int, float]]:
        """Steps and values; without those that were not finite, which the log holds as null."""
        return [(record["step"], drawable(record[name])) for record in records if record.get(name) is not None]

    names = {name.removeprefix("validation_") for record in records for name in record}
    unit = "bits_per_dim" if "bits_per_dim" in names else "nats_per_dim"
    with matplotlib.rc_context(STYLE):
        noise = points("noise_std")
        heights = [3.6, 1.2] if noise else [3.6]  # inches
        figure = Figure(figsize=(6, sum(heights)), layout="constrained")
        axes, *below = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for name, label in ((unit, "training batch"), (f"validation_{unit}", "validation, EMA weights")):
            if found := points(name):
                axes.plot(*zip(*found, strict=True), label=label, marker="o" if len(found) < 40 else None, ms=4)
        values = sorted(value for _, value in points(unit))
        if values:  # leaves out the first steps
            low, high = values[0], values[int(0.9 * (len(values) - 1))]
            margin = max(0.1, 1e-6 * abs(high))  # huge numbers leave .1 no room
            axes.set_ylim(low - margin, high + margin)
        what = "bits/dim" if unit == "bits_per_dim" else "nats/dim of the noised image"
        axes.set(ylabel=what)
        axes.set_title(f"Training {run.name}", parse_math=False)  # a folder's name may hold $
        if axes.lines:
            axes.legend(frameon=False)
        for panel in below:
            panel.plot(*zip(*noise, strict=True), color=COLOURS[6])
            panel.set(ylabel="noise $\\sigma$", ylim=0)
        (below or [axes])[-1].set_xlabel("step")
    return figure


def model_at_work(model: Any, image: Tensor, *, label: int, token: int) -> Figure:
    """One image (C,H,W) in [-1, 1] passing through a model: patches, tokens, latents, and one latent's mixture.

    `token`, counted from 1, selects the mixture: the density of each of its first three channels, with the latent's own
    value marked.
    """
    size, patch = model.config.image_size, model.config.patch_size
    with torch.no_grad():
        x, _ = model.to_tokens(image[None])
        z, _ = model.flow(x)
        mixture, _ = model.prior.mixtures(z, torch.tensor([label], device=image.device))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        layout = ConstrainedLayoutEngine(wspace=0.12)  # a share of panels, which are narrow here
        figure = Figure(figsize=(WIDEST, 2.8), layout=layout)
        picture, tokens, latents, density = figure.subplots(1, 4, width_ratios=[3, 1.5, 1.5, 3.6])
        picture.imshow(to_bytes(image[None])[0].permute(1, 2, 0).numpy(), cmap="gray", extent=(0, size, size, 0))
        for line in range(0, size + 1, patch):
            picture.axhline(line, color=COLOURS[1], lw=1)
            picture.axvline(line, color=COLOURS[1], lw=1)
        picture.set(title="image, cut into patches", xticks=[], yticks=[])
        for axes, values, title in ((tokens, x, "tokens X"), (latents, z, "latents Z")):
            largest = float(values.abs().max())
            tall, wide = values.shape[1:]
            extent = (0.5, wide + 0.5, tall + 0.5, 0.5)  # tokens and channels count from 1
            axes.imshow(values[0].cpu().numpy(), cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto", extent=extent)
            axes.set(title=title, xlabel="channel", xticks=range(1, wide + 1))
            axes.set_yticks([1, *range(4, tall + 1, 4)])
        tokens.set_ylabel("token")
        latents.tick_params(labelleft=False)  # the same tokens
        latents.axhline(token - 0.5, color=COLOURS[6], lw=1)
        latents.axhline(token + 0.5, color=COLOURS[6], lw=1)
        grid = torch.linspace(-4, 4, 400)
        at = token - 1
        weights = mixture.logits[0, at].cpu().softmax(-1)
        for channel in range(min(3, mixture.mean.shape[-1])):
            means, scales = (part[0, at, :, channel].cpu() for part in (mixture.mean, mixture.log_scale.exp()))
            components = torch.distributions.Normal(means, scales).log_prob(grid[:, None]).exp()
            mixed = (components @ weights).numpy()
            here = z[0, at, model.prior.channel_order[channel]].cpu()
            density.plot(grid.numpy(), mixed, color=COLOURS[channel], label=f"channel {channel + 1}")
            density.axvline(float(here), color=COLOURS[channel], ls=":", lw=1.4)
        density.set(title=f"prediction of token {token}", xlabel="latent", ylabel="density", ylim=0)
        density.legend(frameon=False, fontsize=8)
    return figure
