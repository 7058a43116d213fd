"""Which form and which loss suit the one-step student best? `python -m benchmarks.distillation`.

Students of the shipped digits model, one for each form, loss and seed, all with the same number of steps. For each: the
relative error block by block on the validation split; and, for 1,000 class-conditional latents from the prior, decoded
by the exact inverse and by the student, the difference of the images and the classification accuracy. Writes
results/distillation.json. The students are kept in `--runs`, and an interrupted benchmark goes on there. With `--ship`,
the student of the first row and seed goes beside its teacher, and both are drawn in results/student.png.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor

from farmer_ref import Farmer, OneStepStudent, distill
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import PixelClassifier, frechet_distance
from farmer_ref.model.pretrained import STUDENT
from farmer_ref.support import cli
from farmer_ref.support.files import PRETRAINED, read_metrics, write_json
from farmer_ref.support.plots import labelled_grids
from farmer_ref.support.record import ROOT, mean_and_spread, provenance
from farmer_ref.support.settings import Dropout, Whole, settings_class
from farmer_ref.training.checkpoint import last_state

AVERAGED = ("sample_error", "sample_accuracy", "frechet_distance", "validation_relative_error_from_block_1")


@settings_class
class DistillationBenchmark:
    """Forms and losses, seeds and the budget."""

    students: tuple[str, ...] = ("forward/hidden", "inverse/hidden")
    """Form and loss of the students to compare; the first is the paper's."""
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """One student each."""
    steps: PositiveInt = 3000
    """Optimiser steps of each."""
    dropout: Dropout = 0.0
    """The students' dropout."""
    samples: PositiveInt = 1000
    """Latents that both decode."""
    threads: PositiveInt = 2
    """CPU threads."""
    ship: bool = False
    """Ship the student of the first row and seed."""
    runs: str = "runs/distillation"
    """Where the students are kept."""
    out: str = "distillation"
    """Name of the files in results/."""


def ship(model: Farmer, z: Tensor, folder: Path, figures: dict) -> None:
    """Copy a student into the package, with the record of how it was made, and draw it beside its teacher."""
    shutil.copyfile(folder / STUDENT, PRETRAINED / "digits" / STUDENT)
    made = distill.distillation_settings(folder / "distillation")
    settings = dataclasses.asdict(dataclasses.replace(made, out="", run="digits"))  # not that machine's folders
    write_json(PRETRAINED / "digits" / "student.json", {**figures, "settings": settings})
    grids = {}
    for name, student in (("exact inverse", None), ("one-step student", OneStepStudent.from_pretrained("digits"))):
        with torch.no_grad():
            grids[name] = model.dequantiser.without_noise(model.decode(z[:100], student=student))
    labelled_grids(grids, columns=10).savefig(ROOT / "results" / "student.png")


def spread(values: list) -> dict:
    """Mean and standard deviation over seeds of a figure, or of each of the figures of a list."""
    if isinstance(values[0], float):
        return mean_and_spread(values)
    parts = [mean_and_spread(list(part)) for part in zip(*values, strict=True)]
    return {name: [part[name] for part in parts] for name in parts[0]}


def main(argv: list[str] | None = None) -> None:
    config = cli.parse(
        "benchmarks.distillation", DistillationBenchmark(), "Compare the student's forms and losses.", argv
    )
    torch.set_num_threads(config.threads)
    made = provenance(torch.device("cpu"))
    model = Farmer.from_pretrained("digits")
    classifier = PixelClassifier(load_split("digits", "train", model.config, data_root="data", download=False))
    validation = load_split("digits", "validation", model.config, data_root="data", download=False)
    real = classifier.scores(next(batches(validation, len(validation)))[0])
    labels = torch.arange(config.samples) % model.config.num_classes
    z = model.prior.sample(labels, generator=torch.Generator().manual_seed(0))
    exact = model.decode(z).clamp(-1, 1)

    def scores(images: Tensor) -> dict[str, float]:
        values = model.dequantiser.quantise(images)
        return {
            "sample_accuracy": classifier.accuracy(values, labels),
            "frechet_distance": frechet_distance(classifier.scores(values), real),
        }

    def folder_of(student: str, seed: int) -> Path:
        name = f"{student.replace('/', '-')}-{config.steps}steps-dropout{config.dropout:g}-seed{seed}"
        return Path(config.runs) / name

    runs = []
    for seed in config.seeds:
        for name in config.students:
            form, loss = name.split("/")
            folder = folder_of(name, seed)
            arguments = ["--form", form, "--loss", loss, "--seed", str(seed), "--steps", str(config.steps)]
            arguments += ["--dropout", str(config.dropout), "--device", "cpu", "--resume"]
            distill.main(["--run", "digits", "--out", str(folder), *arguments])
            state = last_state(folder / "distillation")
            if state.step < config.steps:
                return  # interrupted
            student = OneStepStudent.from_pretrained(folder)
            with torch.no_grad():
                images = model.decode(z, student=student).clamp(-1, 1)
            last = [r for r in read_metrics(folder / "distillation") if "validation_error_block_1" in r][-1]
            run = {
                "form": form,
                "loss": loss,
                "seed": seed,
                "steps": state.step,
                "training_minutes": state.seconds / 60,
                "validation_relative_error_from_block_1": [
                    last[f"validation_error_block_{t}"] for t in range(1, 1 + model.config.flow_blocks)
                ],
                "sample_error": float((images - exact).square().mean().sqrt()),
                **scores(images),
            }
            runs.append(run)
            print(json.dumps(run), flush=True)

    table = {}
    for name in config.students:
        mine = [run for run in runs if f"{run['form']}/{run['loss']}" == name]
        table[name] = {figure: spread([run[figure] for run in mine]) for figure in AVERAGED}
    if config.ship:
        ship(model, z, folder_of(config.students[0], config.seeds[0]), {**made, **runs[0], "exact": scores(exact)})

    record = {**made, **dataclasses.asdict(config), "exact": scores(exact), "table": table, "runs": runs}
    write_json(ROOT / "results" / f"{config.out}.json", record)
    print(json.dumps({"exact": record["exact"], **table}, indent=2))


if __name__ == "__main__":
    cli.run(main)
