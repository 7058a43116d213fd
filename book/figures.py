"""Draw the figures and compute the tables that the book's pages include: `python -m book.figures FOLDER`.

No number that the pages include is typed into them: each comes from the package or from results/*.json.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from book.equations import REPOSITORY, ROOT
from book.pages import RESULTS, load
from farmer_ref import Farmer, Guidance
from farmer_ref.data.sets import batches, load_split
from farmer_ref.parameters import GPU, GPU_BYTES, GPUS, LARGE, PAPER, RESERVED_BYTES, UTILISATION, count, step_costs
from farmer_ref.support.plots import COLOURS, STYLE, image_grid, model_at_work
from farmer_ref.training.config import TrainConfig
from farmer_ref.training.costs import peak_flops_of, training_flops
from farmer_ref.training.presets import PRESETS

README = {  # parts of the README that pages include: the text before and after each
    "first_screen": ("selected.\n", "```python"),
    "many_gpus": ("each of them):\n", "`--parallel ddp`"),
    "slurm": ("can be queued again:\n", "ImageNet:"),
}
TABLES = {  # of a line of `step_costs`, the places of its numbers, and their names
    "memory": (
        (2, "state, 1 GPU (GiB)"),
        (3, f"each of {GPUS} (GiB)"),
        (4, "an image (MiB)"),
        (5, "checkpointed (MiB)"),
    ),
    "images that fit": ((6, "1 GPU"), (7, "checkpointed"), (8, f"each of {GPUS}"), (9, "checkpointed")),
    "time": ((1, "GFLOP an image"), (10, "images/s, 1 GPU"), (11, f"days on {GPUS} GPUs")),
}
WIDTH = 76  # of a line of code that the page shows whole


def one_picture(folder: Path) -> None:
    """A test digit on its way through the shipped model: patches, tokens, latents, and a latent's mixture."""
    model = Farmer.from_pretrained("digits")
    values, labels = next(batches(load_split("digits", "test", model.config), 4))
    noise = model.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
    figure = model_at_work(model, model.dequantiser(values, noise)[3], label=int(labels[3]), token=7)
    figure.savefig(folder / "one_picture.png", dpi=140)


def samples(folder: Path) -> None:
    """Samples of the shipped model, one column for each class: five rows without guidance, five at w = 1."""
    model, labels = Farmer.from_pretrained("digits"), torch.arange(10).repeat(5)
    generator = torch.Generator().manual_seed(0)
    drawn = [model.sample(labels, Guidance(scale=w), generator=generator) for w in (0.0, 1.0)]
    image_grid(torch.cat(drawn), columns=10).save(folder / "samples.png")


def change_of_variables(folder: Path) -> None:
    """A density in one dimension, the map that stretches it, and the density that comes out."""
    x = torch.linspace(-3.2, 3.2, 800)
    centres, scale, weights = torch.tensor([-1.3, 1.1]), torch.tensor([0.45, 0.6]), torch.tensor([0.4, 0.6])
    standard = torch.distributions.Normal(0.0, 1.0)
    parts = torch.distributions.Normal(centres, scale)
    density = parts.log_prob(x[:, None]).exp() @ weights
    z = standard.icdf((parts.cdf(x[:, None]) @ weights).clamp(1e-6, 1 - 1e-6))  # the increasing map to N(0, 1)
    x, z, density, normal = (values.numpy() for values in (x, z, density, standard.log_prob(z).exp()))
    edges = [200, 300, 400, 500, 600]  # strips of equal width in x, with the same probability in z
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(9.5, 3), layout="constrained")
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
        figure.savefig(folder / "change_of_variables.png", dpi=140)


def table(heads: list[str], rows: list[list[Any]], numbers: bool = True) -> str:
    """A Markdown table, numbers to the right."""
    lines = [heads, ["---", *["---:" if numbers else "---"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def gpu_hours(run: TrainConfig) -> float:
    """Hours of one GPU for all steps of a preset, to two digits: the days of `step_costs`, less rounded."""
    operations = training_flops(run.model) * run.steps * run.batch_size
    return float(f"{operations / (UTILISATION * peak_flops_of(GPU)) / 3600:.2g}")


def costs(folder: Path) -> None:
    """costs.md, what training the large presets takes, and counts.md, their parameters beside the paper's."""
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
        tables.append(table(heads, rows))
    notes = (
        f"Computed for {GPU} GPUs of {GPU_BYTES / 1e9:.0f} GB, of which {RESERVED_BYTES >> 30} GiB stay free, at "
        f"{UTILISATION:.0%} of their bfloat16 peak. That share is a goal, not a measurement.\n"
    )
    (folder / "costs.md").write_text("\n".join([*tables, notes]))
    heads = ["millions of parameters", "flow", "the paper", "prior", "the paper", "of it: token head", "shared head"]
    rows = []
    for name, (prior, flow) in PAPER.items():
        parts = {part: f"{number / 1e6:,.0f}" for part, number in sizes[name].items()}
        heads_of_prior = [parts["token_head"], parts["redundant_head"]]
        rows.append([f"`{name}`", parts["flow"], f"{flow:,}", parts["prior"], prior, *heads_of_prior])
    (folder / "counts.md").write_text(table(heads, rows))


def measured(folder: Path) -> None:
    """measured.md: every file of results, what made it, on which day and which device."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        record = load(path.stem)
        module = record["command"].split()[2]
        link = f"{REPOSITORY}/blob/main/results/{path.name}"
        rows.append([f"[{path.stem}]({link})", f"`{module}`", f"`{record['commit'][:7]}`", record["device"]])
    (folder / "measured.md").write_text(table(["result", "made by", "at commit", "on"], rows, numbers=False))


def digits(folder: Path) -> None:
    """digits.md: what the scores of the digits can be compared with."""
    real = load("digits")["runs"][0]["real_image_accuracy"]
    nothing = math.log2(PRESETS["digits"].model.levels)
    (folder / "digits.md").write_text(
        f"To compare: a model that knows nothing needs {nothing:.2f} bits/dim, and the classifier reads {real:.1%} of "
        "the real test images as their class.\n"
    )


def readme(folder: Path) -> None:
    """Parts of the README, whose commands and figures tests hold; long commands in lines that a page shows whole."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, (before, after) in README.items():
        part = text.split(before, 1)[1].split(after, 1)[0].strip().replace("```", "```bash", 1)
        lines = (wrapped(line) if line.startswith(("python", "torchrun")) else line for line in part.splitlines())
        (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def wrapped(command: str) -> str:
    """A command in several lines, each option with its value."""
    lines = [""]
    for part in re.split(" (?=-)", command):
        if len(lines[-1]) + len(part) > WIDTH:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {part}" if lines[-1] else part
    return " \\\n".join(lines)


def main(folder: str) -> None:
    """Everything, into one folder."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for draw in (one_picture, samples, change_of_variables, costs, measured, digits, readme):
        draw(place)


if __name__ == "__main__":
    main(*sys.argv[1:])
