"""Draw the figures and compute the tables of costs that the book's pages include: `python -m book.figures FOLDER`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from book.pages import table
from farmer_ref import Farmer, Guidance
from farmer_ref.data.sets import batches, load_split
from farmer_ref.parameters import (
    DRAWN,
    GPU,
    GPU_BYTES,
    GPUS,
    LARGE,
    PAPER,
    RESERVED_BYTES,
    count,
    step_costs,
    utilisation,
)
from farmer_ref.support.drawings import drawings
from farmer_ref.support.plots import COLOURS, STYLE, WIDEST, image_grid, model_at_work
from farmer_ref.training.config import TrainConfig
from farmer_ref.training.costs import peak_flops_of, training_flops
from farmer_ref.training.presets import PRESETS

GAP = 2  # pixels between samples
TABLES = {  # columns of `step_costs`, and their headings
    "memory": (
        (2, "state, 1 GPU (GiB)"),
        (3, f"each of {GPUS} (GiB)"),
        (4, "an image (MiB)"),
        (5, "checkpointed (MiB)"),
    ),
    "images that fit": ((6, "1 GPU"), (7, "checkpointed"), (8, f"each of {GPUS}"), (9, "checkpointed")),
    "time": (
        (1, "GFLOP an image"),
        (10, "of the peak"),
        (11, "compiled"),
        (12, "images/s, 1 GPU"),
        (13, f"days on {GPUS} GPUs"),
    ),
    "sampling": ((14, f"the guided prior's cache, {DRAWN} images (GiB)"),),
}


def one_picture(folder: Path) -> None:
    """A test digit on its way through the shipped model: patches, tokens, latents, and a latent's mixture."""
    model = Farmer.from_pretrained("digits")
    values, labels = next(batches(load_split("digits", "test", model.config), 4))
    noise = model.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
    figure = model_at_work(model, model.dequantiser(values, noise)[3], label=int(labels[3]), token=11)
    figure.savefig(folder / "one_picture.svg")


def samples(folder: Path) -> None:
    """Samples of the shipped model of 28x28 digits, a column for each class: without guidance, and at w = 1."""
    model, labels = Farmer.from_pretrained("mnist-p2"), torch.arange(10).repeat(6)
    middles = [(place + 0.5) * (model.config.image_size + GAP) for place in range(10)]
    for name, title, scale in (("unguided", "without guidance", 0.0), ("guided", "guidance scale $w = 1$", 1.0)):
        images = model.sample(labels, Guidance(scale=scale), generator=torch.Generator().manual_seed(0))
        with matplotlib.rc_context(STYLE | {"axes.grid": False}):
            figure = Figure(figsize=(4.4, 3), layout="constrained")
            axes = figure.subplots()
            axes.imshow(image_grid(images, columns=10, cell=28, gap=GAP), cmap="gray", vmin=0, vmax=255)
            axes.set_xticks(middles, [str(label) for label in range(10)])
            axes.set_yticks([])
            axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
            axes.spines[:].set_visible(False)
            axes.set_xlabel(title, fontsize=11)
            figure.savefig(folder / f"{name}.svg")


def change_of_variables(folder: Path) -> None:
    """A density in one dimension, the map that stretches it, and the resulting density."""
    x = torch.linspace(-3.2, 3.2, 800)
    centres, scale, weights = torch.tensor([-1.3, 1.1]), torch.tensor([0.45, 0.6]), torch.tensor([0.4, 0.6])
    standard = torch.distributions.Normal(0.0, 1.0)
    parts = torch.distributions.Normal(centres, scale)
    density = parts.log_prob(x[:, None]).exp() @ weights
    z = standard.icdf((parts.cdf(x[:, None]) @ weights).clamp(1e-6, 1 - 1e-6))  # the increasing map to N(0, 1)
    x, z, density, normal = (values.numpy() for values in (x, z, density, standard.log_prob(z).exp()))
    edges = [200, 300, 400, 500, 600]  # strips of equal width in x, with the same probability in z
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(WIDEST, 2.9), layout="constrained")
        data, way, latent = figure.subplots(1, 3)
        for axes, place, height in ((data, x, density), (latent, z, normal)):
            axes.plot(place, height, color=COLOURS[6])
            for strip, (first, last) in enumerate(itertools.pairwise(edges)):
                rows = slice(first, last + 1)
                axes.fill_between(place[rows], height[rows], color=COLOURS[strip], alpha=0.6, lw=0)
            axes.set(ylim=(0, 0.55), ylabel="density")
        data.set(title="density of x", xlabel="x")
        latent.set(title="density of z", xlabel="z", xlim=(-3.2, 3.2))
        way.plot(x, z, color=COLOURS[6])
        for strip, edge in enumerate(edges):
            way.plot([x[edge]] * 2, [-3.2, z[edge]], color=COLOURS[min(strip, 3)], lw=1, ls=":")
            way.plot([x[edge], 3.2], [z[edge]] * 2, color=COLOURS[min(strip, 3)], lw=1, ls=":")
        way.set(title="an invertible map z(x)", xlabel="x", ylabel="z", ylim=(-3.2, 3.2), xlim=(-3.2, 3.2))
        figure.savefig(folder / "change_of_variables.svg")


def drawn(folder: Path) -> None:
    """The drawings of the machine, each in a file of its name."""
    for draw in drawings():
        draw().savefig(folder / f"{draw.__name__}.svg")


def gpu_hours(run: TrainConfig) -> float:
    """GPU-hours of a preset's whole training, to two digits: the days of `step_costs`, less rounded."""
    operations = training_flops(run.model) * run.steps * run.batch_size
    return float(f"{operations / (utilisation(run.preset) * peak_flops_of(GPU)) / 3600:.2g}")


def costs(folder: Path) -> None:
    """costs.md, the cost of training the large presets, and counts.md, their parameters beside the paper's."""
    sizes = {name: count(preset.model) for name, preset in PRESETS.items()}
    names = [name for name, parts in sizes.items() if parts["total"] >= LARGE]
    lines = {name: step_costs(name).split() for name in names}
    tables = []
    for title, places in TABLES.items():
        rows = [[f"`{name}`", *(lines[name][place] for place, _ in places)] for name in names]
        heads = [title, *(head for _, head in places)]
        if title == "time":
            heads.append("GPU-hours")
            for name, row in zip(names, rows, strict=True):
                row.append(f"{gpu_hours(PRESETS[name]):,.0f}")
        tables.append(f"{table(heads, rows, numbers=True)}\n")
    notes = (
        f"Computed for {GPU} GPUs of {GPU_BYTES / 1e9:.0f} GB, with {RESERVED_BYTES >> 30} GiB left free. The share of "
        "the bfloat16 peak (MFU) is what a count of this code's operations allows where nothing waits, without and "
        "with `--compile`: a bound with guessed efficiencies, not a measurement. The columns after it follow from the "
        "share with `--compile`.\n"
    )
    (folder / "costs.md").write_text("\n".join([*tables, notes]))
    heads = [
        "millions of parameters",
        "flow",
        "the paper",
        "prior",
        "the paper",
        "its token head",
        "its shared head",
    ]
    rows = []
    for name, (prior, flow) in PAPER.items():
        parts = {part: f"{number / 1e6:,.0f}" for part, number in sizes[name].items()}
        heads_of_prior = [parts["token_head"], parts["redundant_head"]]
        rows.append([f"`{name}`", parts["flow"], f"{flow:,}", parts["prior"], f"{prior:,}", *heads_of_prior])
    (folder / "counts.md").write_text(f"{table(heads, rows, numbers=True)}\n")


def main(folder: str) -> None:
    """Everything, into one folder."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for draw in (one_picture, samples, change_of_variables, drawn, costs):
        draw(place)


if __name__ == "__main__":
    main(*sys.argv[1:])
