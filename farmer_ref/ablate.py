"""The paper's tables and figures at a scale that a laptop can check: `python -m farmer_ref.ablate --table 3`.

Each row is a model that differs from its neighbours in one respect, trained for the same time with several seeds, and
measured in the same three ways: test bits/dim, the accuracy of a classifier on class-conditional samples, and a Fréchet
distance in the classifier's scores. Runs are kept and resumed, and shared between tables.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from matplotlib.figure import Figure
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from tqdm import tqdm

from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.classifier import classifier_for
from farmer_ref.evaluation.results import Figures, read_result
from farmer_ref.evaluation.tables import (
    HIGHER_IS_BETTER,
    MEASURES,
    OF_SAMPLES,
    TIMED_BATCH,
    TIMED_ROUNDS,
    Row,
    Table,
    bases,
    tables,
)
from farmer_ref.evaluation.verdicts import describe, judged, report
from farmer_ref.support import cli
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.files import read_json, replace_file, write_json
from farmer_ref.support.parallel import resolve_device
from farmer_ref.support.plots import class_labels, comparison, labelled_grids, save_plot
from farmer_ref.support.record import over_seeds, provenance, timed_in_turns
from farmer_ref.support.settings import Count, settings_class
from farmer_ref.training.checkpoint import last_state
from farmer_ref.training.config import TrainConfig
from farmer_ref.training.presets import PRESETS
from farmer_ref.training.runs import Run

QUINTILES, SHOWN = 5, 30
TRAINING = ("steps", "training_seconds")
SETTINGS = ("pixels", "seconds_per_run", "steps_per_run", "samples", "images")  # common to all rows of a result file


@settings_class
class AblateConfig:
    """What to train, for how long, and what to print."""

    table: tuple[Literal["3", "4", "5"], ...] = ()
    """Tables of the paper."""
    figure: tuple[Literal["6a", "6b", "7", "8"], ...] = ()
    """Figures of the paper."""
    basis: bool = False
    """Our own: the blind spot inside a token, and its remedies, on photographs (or --data cifar10, cifar10-crops)."""
    all: bool = False
    """Everything."""
    data: Literal["digits", "photographs", "mnist-quick", "mnist", "cifar10", "cifar10-crops"] = "digits"
    """The preset to vary."""
    pixels: Literal["linear", "histogram"] = "linear"
    """Coordinates of the pixels in every run, whatever the preset's: the paper's are linear."""
    data_root: str = "data"
    """Where torchvision keeps its data sets."""
    download: bool = True
    """Download a missing data set."""
    seconds_per_run: PositiveFloat = 60.0
    """Training time of each run; the schedules are fitted to it."""
    steps_per_run: PositiveInt | None = None
    """Steps of each run of the paper's tables, instead of --seconds-per-run: the same on a busy or slower machine."""
    basis_steps: PositiveInt = 400
    """Steps of the runs of --basis that are compared at equal steps."""
    seeds: Count = 1
    """Runs of each row: seeds 0, 1, ..."""
    other_seeds: Count | None = None
    """Runs of rows that no claim compares, whose deviation is not needed; default: as many."""
    samples: PositiveInt = 1000
    """Samples per row and seed."""
    images: Annotated[int, Field(ge=2)] | None = None
    """Real test images to measure with, evenly spaced over the split; default: all of them."""
    side_by_side: PositiveInt | None = None
    """Runs at a time, one thread each; default: one per CPU core, or 1 on a GPU."""
    runs: str = "runs/ablations"
    """Where the runs are kept: finished ones are not trained again."""
    device: str = "auto"
    """auto, cpu, cuda."""
    out: str = "runs/ablations/results"
    """The folder of the result files. Those in results/ come from longer runs, and appear in the book."""
    suffix: str = ""
    """Appended to the names of the result files, so that a longer run of a table can stand beside a shorter one."""
    keep: bool = False
    """Keep the figures of an existing result file, and add the rows and seeds that it lacks."""


def chosen_tables(config: AblateConfig) -> dict[str, tuple[TrainConfig, Table]]:
    """The requested tables by the name of their result file, each with the preset that it varies."""

    def varied(name: str) -> TrainConfig:
        return replace(PRESETS[name], model=replace(PRESETS[name].model, pixels=config.pixels))

    preset = varied(config.data)
    plain = re.fullmatch(r"[\w-]*", config.suffix, re.ASCII) is not None  # it names files
    require(plain, "suffix", config.suffix, "letters, digits, _ and -")
    names = [f"table{name}" for name in config.table] + [f"figure{name}" for name in config.figure]
    available = tables(preset)
    require(bool(names or config.basis or config.all), "table", None, "3, 4, 5; or --figure, --basis, --all")
    chosen = {}
    for name in available if config.all else names:
        rows = tuple(replace(row, steps=config.steps_per_run) for row in available[name].rows)
        chosen[name] = preset, replace(available[name], rows=rows)
    if config.basis or config.all:
        preset = varied("photographs") if config.data == "digits" else preset  # a token of digits has few channels
        chosen["basis"] = preset, bases(preset, config.basis_steps)
    return chosen


def result_path(config: AblateConfig, name: str, preset: TrainConfig) -> Path:
    """The result file of a table; its name includes the data set, if not the table's own, and the suffix."""
    data = "" if preset.preset == ("photographs" if name == "basis" else "digits") else f"_{preset.preset}"
    pixels = "" if config.pixels == "linear" else f"_{config.pixels}"
    return Path(config.out) / f"{name}{data}{pixels}{config.suffix}.json"


def processors() -> int:
    """The processors that this process may use, where the system says so: a scheduler may have given it a few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Runs:
    """The training runs behind rows: kept in a folder, and trained if missing."""

    def __init__(self, config: AblateConfig):
        self.config, self.device = config, resolve_device(config.device)
        on_gpu = self.device.type == "cuda"
        self.side_by_side = config.side_by_side or (1 if on_gpu else processors())
        self._children: set[subprocess.Popen] = set()
        # One thread per run: the threads of two runs on the same cores would spin, waiting for each other.
        self.environment = os.environ | ({} if on_gpu else {"OMP_NUM_THREADS": "1"})

    def folder(self, preset: TrainConfig, row: Row, seed: int) -> Path:
        """Where a row's run of one seed is kept: the name spells out all differences from the preset."""
        on_gpu = "-on-gpu" if self.device.type == "cuda" else ""
        limit = f"{row.steps}steps" if row.steps else f"{self.config.seconds_per_run:g}s{on_gpu}"
        parts = [f"{name}={value}" for name, value in sorted(row.model.items()) if getattr(preset.model, name) != value]
        data = preset.preset if self.config.pixels == "linear" else f"{preset.preset}-{self.config.pixels}"
        return Path(self.config.runs) / data / limit / (",".join(parts) or "preset") / f"seed{seed}"

    def sampled_folder(self, preset: TrainConfig, row: Row, seed: int) -> Path:
        """Where a row's samples come from: its run, or a copy of that with a student of our form."""
        folder = self.folder(preset, row, seed)
        return folder if row.form == "forward" else folder.with_name(f"{folder.name}-{row.form}")

    def finished(self, preset: TrainConfig, row: Row, seed: int) -> bool:
        """Whether a row's run of one seed is complete. Raises `InputError` if its settings differ."""
        folder = self.folder(preset, row, seed)
        if not (folder / "finished").exists():
            return False
        same = (folder / "finished").read_text() == self.settings(preset, row)
        require(same, "runs", str(folder), "another folder: the preset has changed since this one was trained")
        return True

    @staticmethod
    def settings(preset: TrainConfig, row: Row) -> str:
        """All settings that a row is trained with, as JSON."""
        settings = asdict(replace(preset, model=replace(preset.model, **row.model)))
        del settings["model"]["class_names"]  # which come from the data
        return json.dumps(settings, indent=2)

    def train(self, preset: TrainConfig, row: Row, seed: int) -> None:
        """Train or resume a row's run."""
        if self.finished(preset, row, seed):
            return
        folder = self.folder(preset, row, seed)
        changes = {"pixels": preset.model.pixels} | row.model
        model = [part for name, value in changes.items() for part in model_flag(name, value)]
        quiet = ["--validate-every", 0, "--sample-every", 0, "--checkpoint-every", 1000]
        place = ["--out", folder, "--resume", "--seed", seed, "--data-root", self.config.data_root]
        self._run("train", "--preset", preset.preset, *place, *self._limit(row), *quiet, *model)
        (folder / "finished").write_text(self.settings(preset, row))

    def distil(self, preset: TrainConfig, row: Row, seed: int) -> None:
        """Distil a row's run, or resume that. Raises `InputError` where a student of another form is in its place."""
        folder, distilled = self.folder(preset, row, seed), self.sampled_folder(preset, row, seed) / "distilled"
        if distilled.exists():
            form = distilled.read_text()
            require(form == row.form, "runs", str(distilled), f"students that say their form, here {row.form!r}")
            return
        quiet = ["--validate-every", 0, "--sample-every", 0, "--dropout", 0.1, "--data-root", self.config.data_root]
        place = ["--run", folder, "--out", distilled.parent, "--resume", "--form", row.form]
        self._run("distill", *place, *self._limit(row), *quiet, "--batch-size", preset.batch_size)
        distilled.write_text(row.form)

    def figures(self, preset: TrainConfig, row: Row, seed: int) -> Figures:
        """The figures of `farmer_ref.evaluate` for a row's run on the test split, cached beside it."""
        folder = self.sampled_folder(preset, row, seed)
        images = [] if self.config.images is None else ["--images", str(self.config.images)]
        name = "_".join(["figures", str(self.config.samples), *images, *row.sampling]).replace("--", "")
        path = folder / (re.sub(r"[^\w.]+", "-", name) + ".json")
        if not path.exists():
            place = ["--run", folder, "--out", path, "--samples", self.config.samples]
            self._run("evaluate", *place, "--seed", seed, "--data-root", self.config.data_root, *images, *row.sampling)
        return read_json(path, Figures)

    def in_parallel(self, what: str, work: Callable[..., Any], jobs: Iterable[tuple]) -> list[Any]:
        """work(*job) for all jobs, `side_by_side` at a time, with a progress bar; in the order of the jobs."""
        jobs = list(jobs)
        with ThreadPoolExecutor(self.side_by_side) as pool:
            try:
                return list(tqdm(pool.map(lambda job: work(*job), jobs), desc=what, unit="run", total=len(jobs)))
            except (KeyboardInterrupt, cli.Terminated):
                for child in list(self._children):  # they save a checkpoint, and end
                    child.terminate()
                raise

    def _limit(self, row: Row) -> list[object]:
        """How long a row is trained, and distilled, as arguments of both commands."""
        return ["--steps", row.steps] if row.steps else ["--max-minutes", self.config.seconds_per_run / 60]

    def _run(self, command: str, *arguments: object) -> None:
        line = [sys.executable, "-m", f"farmer_ref.{command}", *map(str, arguments), "--device", str(self.device)]
        pipe = subprocess.PIPE
        with subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=self.environment) as child:
            self._children.add(child)
            _, errors = child.communicate()
            self._children.remove(child)
        if child.returncode:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"python {' '.join(line[1:])} ended with {child.returncode}: {last}")


def seeds_of_rows(config: AblateConfig, table: Table) -> dict[str, range]:
    """The seeds of each row, by its name; rows that no claim compares may have fewer."""
    compared = {name for claim in table.claims for name in (*claim.firsts, claim.second)}
    others = config.other_seeds if table.claims and config.other_seeds else config.seeds
    return {row.name: range(config.seeds if row.name in compared else others) for row in table.rows}


def figures_of_rows(rows: Iterable[dict[str, Any]], table: Table) -> dict[tuple[str, int], dict[str, Any]]:
    """The figures in a result file for the rows of a table, by row and seed."""
    wanted = {row.name: (row.model, list(row.sampling)) for row in table.rows}
    return {
        (row["name"], seed): {name: row[name]["seeds"][seed] for name in MEASURES}
        | {name: row[name][seed] for name in TRAINING}
        for row in rows
        if wanted.get(row["name"]) == (row["model"], row["sampling"])
        for seed in range(len(row["steps"]))
    }


def measure(
    runs: Runs, preset: TrainConfig, table: Table, *, earlier: Iterable[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The rows of a table: the figures of each seed, with mean and standard deviation.

    `earlier` holds rows of a result file. Their figures are used where the run itself is missing.
    """
    seeds = seeds_of_rows(runs.config, table)
    figures = figures_of_rows(earlier, table)
    every = [(preset, row, seed) for row in table.rows for seed in seeds[row.name]]
    every = [job for job in every if runs.finished(*job) or (job[1].name, job[2]) not in figures]
    runs.in_parallel("training", runs.train, {runs.folder(*job): job for job in every}.values())
    with_student = [job for job in every if "--student" in job[1].sampling]
    runs.in_parallel("distilling", runs.distil, {runs.sampled_folder(*job): job for job in with_student}.values())
    for (_, row, seed), scored in zip(every, runs.in_parallel("scoring", runs.figures, every), strict=True):
        state = last_state(runs.folder(preset, row, seed))
        measures = {name: getattr(scored, name) for name in MEASURES}
        figures[row.name, seed] = {**measures, "steps": state.step, "training_seconds": state.seconds}
    rows = []
    for row in table.rows:
        mine = [figures[row.name, seed] for seed in seeds[row.name]]
        measured: dict[str, Any] = {"name": row.name, "model": row.model, "sampling": row.sampling, "paper": row.paper}
        measured |= {name: over_seeds([one[name] for one in mine]) for name in MEASURES}
        measured |= {name: [one[name] for one in mine] for name in TRAINING}
        rows.append(measured)
    if table.speeds:
        seconds = seconds_per_image(runs, preset, table.rows)
        rows = [row | {"seconds_per_image": seconds[row["name"]]} for row in rows]
    return rows


def model_flag(name: str, value: object) -> list[object]:
    """A field of the model and its value as arguments of `farmer_ref.train`."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--model.{flag}" if value else f"--model.no-{flag}"]
    return [f"--model.{flag}", value]


@torch.no_grad()
def seconds_per_image(runs: Runs, preset: TrainConfig, rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Median seconds per image of each part of sampling, by row, at batch 16; rows and parts take turns."""
    parts = {
        (row.name, part): function for row in rows for part, function in parts_of_sampling(runs, preset, row).items()
    }
    seconds: dict[str, dict[str, float]] = {}
    for (name, part), times in timed_in_turns(parts, TIMED_ROUNDS, runs.device).items():
        seconds.setdefault(name, {})[part] = statistics.median(times) / TIMED_BATCH
    return seconds


def parts_of_sampling(runs: Runs, preset: TrainConfig, row: Row) -> dict[str, Callable[[], object]]:
    """The flow's forward pass, the prior's sampling (as the row does it, and unguided), and the flow's inverse."""
    sampled = runs.figures(preset, row, 0)
    run = Run.open(runs.sampled_folder(preset, row, 0))
    model = run.load().to(runs.device)
    student = run.load_student(model) if sampled.student else None
    labels = torch.zeros(TIMED_BATCH, dtype=torch.long, device=runs.device)
    z = model.prior.sample(labels)
    images = model.decode(z)
    return {
        "forward": lambda: model.encode(images),
        "prior": lambda: model.prior.sample(labels, sampled.guidance),
        "prior unguided": lambda: model.prior.sample(labels),
        "back": lambda: model.decode(z, student=student),
    }


@torch.no_grad()
def by_log_determinant(runs: Runs, preset: TrainConfig, row: Row) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Samples in fifths by their log-determinant (Fig. 8): sharpness and accuracy of each fifth, and some samples.

    Sharpness is the mean absolute difference of neighbouring pixels, relative to real test images. Each class is split
    into fifths by itself, so that all fifths hold the same classes: a 1 has fewer edges than an 8, blurred or not.
    """
    training, test = (
        load_split(preset.dataset, s, preset.model, data_root=runs.config.data_root) for s in ("train", "test")
    )
    classifier = classifier_for(training)

    def sharpness(values: Tensor) -> Tensor:
        values = values.double()
        return (values.diff(dim=2).abs().mean((1, 2, 3)) + values.diff(dim=3).abs().mean((1, 2, 3))) / 2

    real = float(sharpness(next(batches(test, len(test)))[0]).mean())
    labels = torch.arange(runs.config.samples, device=runs.device) % max(1, preset.model.num_classes)
    measured: list[dict[str, list[float]]] = [
        {"logdet": [], "sharpness": [], "sample_accuracy": []} for _ in range(QUINTILES)
    ]
    shown: dict[str, Tensor] = {}
    for seed in range(runs.config.seeds):
        model = Run.open(runs.folder(preset, row, seed)).load().to(runs.device)
        generator = torch.Generator(runs.device).manual_seed(0)
        images = torch.cat([model.decode(model.prior.sample(part, generator=generator)) for part in labels.split(100)])
        logdet = torch.cat([model.encode(part)[1] for part in images.split(100)])
        values = model.dequantiser.quantise(images).cpu()
        fifth, order = torch.empty_like(labels), logdet.argsort()
        for label in labels.unique():
            members = order[labels[order] == label]
            fifth[members] = torch.arange(len(members), device=fifth.device) * QUINTILES // len(members)
        for number in range(QUINTILES):
            chosen = (fifth == number).nonzero()[:, 0].cpu()  # labels cycle, so the first ones cover all classes
            measured[number]["logdet"].append(float(logdet[chosen].mean()))
            measured[number]["sharpness"].append(float(sharpness(values[chosen]).mean()) / real)
            measured[number]["sample_accuracy"].append(classifier.accuracy(values[chosen], labels.cpu()[chosen]))
            if seed == 0:
                end = {0: ", the smallest", QUINTILES - 1: ", the largest"}.get(number, "")
                shown[f"fifth {number + 1} of the log-determinants{end}"] = model.dequantiser.without_noise(
                    images[chosen[:SHOWN]]
                )
    return [{name: over_seeds(values) for name, values in fifth.items()} for fifth in measured], shown


@torch.no_grad()
def scaled_samples(runs: Runs, preset: TrainConfig, table: Table) -> dict[str, Tensor]:
    """The same informative latents with redundant ones of growing scale, by the names of the rows (Fig. 7)."""
    model = Run.open(runs.folder(preset, table.rows[0], 0)).load().to(runs.device)
    labels = class_labels(preset.model.num_classes, per_class=1).repeat(3).to(runs.device)
    drawn = {}
    for row in table.rows:
        generator = torch.Generator(runs.device).manual_seed(0)  # the same random numbers at every scale
        images = model.sample(labels, redundant_temperature=float(row.sampling[-1]), generator=generator)
        drawn[row.name] = model.dequantiser.without_noise(images)
    return drawn


def picture(record: dict[str, Any]) -> Figure:
    """The rows of a result side by side in every measure, with seconds per image if they were measured."""
    headings = {
        measure: f"{heading} ({'higher' if measure in HIGHER_IS_BETTER else 'lower'} is better)"
        for measure, (heading, _) in MEASURES.items()
    }
    return comparison(record["rows"], headings)


def earlier_result(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A result file whose figures to keep; empty if there is none. Raises `InputError` if settings differ."""
    if not path.exists():
        return {}
    earlier = read_result(path)
    for name, value in settings.items():
        require(earlier.get(name) == value, name, value, f"{earlier.get(name)}, as in {path}, whose figures are kept")
    return earlier


def main(argv: list[str] | None = None) -> None:
    """Train missing runs, measure, write the result files, print the findings."""
    description = "Check the tables and figures of the paper at small scale."
    config = cli.parse("farmer_ref.ablate", AblateConfig(), description, argv)
    runs = Runs(config)
    if runs.device.type == "cpu":
        torch.set_num_threads(1)
    chosen, settings, earlier = chosen_tables(config), {}, {}
    paths = {name: result_path(config, name, preset) for name, (preset, _) in chosen.items()}
    for name, (preset, table) in chosen.items():
        settings[name] = {"data": preset.preset} | {field: getattr(config, field) for field in SETTINGS}
        models_needed = table.speeds is not None or name in OF_SAMPLES
        require(not (config.keep and models_needed), "keep", True, f"False for {name}, which measures models, too")
        fewest = QUINTILES * max(1, preset.model.num_classes) if name == "figure8" else 2  # a covariance
        require(config.samples >= fewest, "samples", config.samples, f"{fewest} or more for {name}")
        earlier[name] = earlier_result(paths[name], settings[name]) if config.keep else {}
    for name, (preset, table) in chosen.items():
        # Missing data is reported here, before the work.
        load_split(preset.dataset, "test", preset.model, data_root=config.data_root, download=config.download)
        record = {
            **provenance(runs.device),
            "title": table.title,
            "note": table.note,
            **settings[name],
            "seeds": config.seeds,
            "other_seeds": config.other_seeds,
            "rows": measure(runs, preset, table, earlier=earlier[name].get("rows", ())),
        }
        if earlier[name]:
            origin = {key: earlier[name][key] for key in ("command", "commit", "date", "device")}
            record["kept"] = [*earlier[name].get("kept", ()), origin]
        if name == "figure8":
            record["fifths"], shown = by_log_determinant(runs, preset, table.rows[0])
            samples = labelled_grids(shown, columns=10)
        elif name == "figure7":
            samples = labelled_grids(scaled_samples(runs, preset, table), columns=10)
        else:
            samples = None
        record |= judged(table, record["rows"], record.get("fifths"))
        path = paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        if samples is None:
            save_plot(picture(record), path.with_suffix(".svg"))
        else:
            replace_file(path.with_suffix(".png"), lambda file, grids=samples: grids.savefig(file, format="png"))
        write_json(path, record)
        print(describe(record), flush=True)
    page = report(Path(config.out))
    replace_file(Path(config.out) / "README.md", lambda file: file.write_text(page, encoding="utf-8"))
    print(f"written to {config.out}")


if __name__ == "__main__":
    cli.run(main)
