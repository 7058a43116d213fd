"""The paper's tables and figures at a scale that a laptop can check: `python -m farmer_ref.ablate --table 3`.

Each row is a model that differs from its neighbours in one thing, trained for the same time with several seeds, and
measured in the same three ways: test bits/dim, the share of samples read as their class, and a Fréchet distance in the
classifier's scores. Runs are kept and resumed, and tables share those that they have in common.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from farmer_ref import cli
from farmer_ref.checkpoint import last_state
from farmer_ref.config import PRESETS, TrainConfig
from farmer_ref.data import batches, load_split
from farmer_ref.engine import load_run
from farmer_ref.errors import InputError, require
from farmer_ref.files import replace_file
from farmer_ref.metrics import Reader
from farmer_ref.parallel import resolve_device
from farmer_ref.record import mean_and_spread, provenance, timed
from farmer_ref.student import OneStepStudent

MEASURES = {
    "bits_per_dim": ("bits/dim", ".3f"),
    "share_read_as_class": ("read", ".1%"),
    "frechet_distance": ("Fréchet", ".3f"),
}
GUIDED = ("--guidance", "1")
TIMED_BATCH = 16
QUINTILES = 5


@dataclass(frozen=True)
class Row:
    """One row: what differs from the preset in the model, and in sampling; and the paper's number."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the model that differ from the preset's."""
    sampling: tuple[str, ...] = ()
    """Arguments of `farmer_ref.evaluate`; with --student, the run is distilled first."""
    paper: str = ""
    """What the paper reports."""
    steps: int | None = None
    """Train for so many steps, in place of --seconds-per-run."""


@dataclass(frozen=True)
class Table:
    """Rows to compare, and what the paper says of them."""

    title: str
    rows: tuple[Row, ...]
    claims: tuple[tuple[str, str], ...] = ()
    """Pairs of rows of which the first is better, says the paper (by FID; here by the Fréchet distance)."""
    measure: str = "frechet_distance"
    """What the claims are judged by."""
    note: str = ""
    """The paper's own inconsistencies, where there are any."""
    timed: bool = False
    """Whether the speed of each row's model is measured, too."""


# -- what is compared --------------------------------------------------------------------------------------------------


def tables(preset: TrainConfig) -> dict[str, Table]:
    """The tables and figures of the paper for one preset, by name."""
    model = preset.model
    channels = model.token_channels
    plain = {"condition_repeats": 1, "final_permutation": False}
    repeated = {**plain, "condition_repeats": max(4, model.condition_repeats)}
    both = {**repeated, "final_permutation": True}
    naive = (*GUIDED, "--guidance.rule", "naive")
    sizes = sorted({max(1, channels // 4), channels // 2, 3 * channels // 4})
    return {
        "table3": Table(
            "Table 3: what each part is worth",
            (
                Row("no split", {**plain, "informative": None}, paper="FID 61.17"),
                Row("split", plain, paper="FID 49.29"),
                Row("split, condition repeated", repeated, paper="FID 45.34"),
                Row("split, final permutation", {**plain, "final_permutation": True}, paper="FID 45.69"),
                Row("split, both", both, paper="FID 44.56"),
                Row("both, naive guidance", both, naive, "FID 8.66"),
                Row("both, resampling", both, GUIDED, "FID 5.67"),
                Row("both, resampling, Z_R ~ N(0, I)", {**both, "redundant_prior": "normal"}, GUIDED, "FID 7.81"),
            ),
            (
                ("split", "no split"),
                ("split, condition repeated", "split"),
                ("split, final permutation", "split"),
                ("split, both", "split, condition repeated"),
                ("both, naive guidance", "split, both"),
                ("both, resampling", "both, naive guidance"),
                ("both, resampling", "both, resampling, Z_R ~ N(0, I)"),
            ),
            note="The paper ran this table at K = 1,024, though its Fig. 6a calls 64 best.",
        ),
        "table4": Table(
            "Table 4: which flow, and which way back",
            (
                Row("coupling flow", {"flow": "coupling"}, GUIDED, "FID 106.23; .0065 s forward, .0099 s back"),
                Row("autoregressive flow", {}, GUIDED, "FID 5.55; .0066 s forward, .1689 s back"),
                Row("autoregressive flow, one step", {}, (*GUIDED, "--student"), "FID 5.63; .0066 s, .0076 s"),
            ),
            (("autoregressive flow", "coupling flow"), ("autoregressive flow", "autoregressive flow, one step")),
            timed=True,
        ),
        "table5": Table(
            "Table 5: where the time goes",
            (
                Row("exact inverse", {}, GUIDED, "AR .0500 s + reverse .1689 s = .2189 s an image"),
                Row("one-step student", {}, (*GUIDED, "--student"), ".0567 s an image in all"),
            ),
            note="The paper's parts with the student add to .0576 s, and its printed shares to 101.6%.",
            timed=True,
        ),
        "figure6a": Table(
            "Figure 6a: components K of a token's mixture",
            tuple(Row(f"K = {k}", {"components": k}, GUIDED) for k in (1, 4, 16, 64, 256)),
            (("K = 64", "K = 16"), ("K = 64", "K = 256")),
            note="The paper calls K = 64 best and 32 too few for the split, and runs Table 3 at 1,024.",
        ),
        "figure6b": Table(
            "Figure 6b: informative channels I",
            (
                *(Row(f"I = {size} of {channels}", {"informative": size}, GUIDED) for size in sizes),
                Row(f"I = {channels}, no split", {"informative": None}, GUIDED),
                Row("which: spread over the token", {"informative_channels": "interleaved"}, GUIDED),
            ),
            note="The paper calls I = 128 of 768 best, and does not say which channels they are.",
        ),
        "figure7": Table(
            "Figure 7: redundant channels, standard deviations scaled",
            tuple(
                Row(f"x {scale:g}", {}, ("--redundant-temperature", str(scale)))
                for scale in (0, 0.2, 0.4, 0.8, 1, 1.2, 1.5, 2, 4)
            ),
            note='The paper says "variance"; its symbol is the standard deviation, which is scaled here.',
        ),
        "figure8": Table("Figure 8: samples by their log-determinant", (Row("the preset"),)),
    }


def bases(preset: TrainConfig, steps: int) -> Table:
    """The blind spot inside a token, at equal seconds and at equal steps."""
    split = preset.model.informative or preset.model.token_channels // 4
    variants = {
        "pixels": {},
        "PCA": {"patch_basis": "pca"},
        "DCT": {"patch_basis": "dct"},
        "pixels, learned mixing": {"channel_mixing": "learned"},
        "PCA, learned mixing": {"patch_basis": "pca", "channel_mixing": "learned"},
    }
    base = {"patch_basis": "pixel", "channel_mixing": "none"}
    end = f", {steps} steps"
    rows = [
        Row(f"{name}, {kind}{end if limit else ''}", {**base, **changes, "informative": informative}, steps=limit)
        for limit in (None, steps)
        for kind, informative in (("no split", None), (f"I = {split}", split))
        for name, changes in variants.items()
    ]
    normal = [
        Row(
            f"{name}, I = {split}, Z_R ~ N(0, I)",
            {**base, **changes, "informative": split, "redundant_prior": "normal"},
        )
        for name, changes in (("pixels", {}), ("PCA", {"patch_basis": "pca"}))
    ]
    return Table(
        "The blind spot inside a token: our own finding",
        (*rows, *normal),
        (
            (f"PCA, no split{end}", f"pixels, no split{end}"),
            (f"pixels, learned mixing, no split{end}", f"pixels, no split{end}"),
            ("PCA, no split", "pixels, no split"),
            (f"PCA, I = {split}", f"PCA, I = {split}, Z_R ~ N(0, I)"),
            (f"pixels, I = {split}", f"pixels, I = {split}, Z_R ~ N(0, I)"),
        ),
        measure="bits_per_dim",
        note="The claims are ours, by bits/dim; the paper has no such table.",
    )


# -- running -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AblateConfig:
    """What to train, for how long, and what to print."""

    table: tuple[Literal["3", "4", "5"], ...] = ()
    """Tables of the paper."""
    figure: tuple[Literal["6a", "6b", "7", "8"], ...] = ()
    """Figures of the paper."""
    basis: bool = False
    """Our own: the blind spot inside a token, and its cures, on photographs (or --data cifar10)."""
    all: bool = False
    """Everything."""
    data: Literal["digits", "photographs", "mnist", "cifar10"] = "digits"
    """The preset to vary."""
    data_root: str = "data"
    """Where torchvision keeps its data sets."""
    download: bool = True
    """Download a missing data set."""
    seconds_per_run: float = 60.0
    """Training time of each run; the schedules are fitted to it."""
    steps_per_run: int | None = None
    """Steps of each run of the paper's tables, in place of --seconds-per-run: the same on a busy or slower machine."""
    basis_steps: int = 600
    """Steps of the runs of --basis that are compared at equal steps."""
    seeds: int = 1
    """Runs of each row: seeds 0, 1, ..."""
    samples: int = 1000
    """Samples per row and seed."""
    side_by_side: int | None = None
    """Runs at a time, one thread each; not given: one per CPU core, or 1 on a GPU."""
    runs: str = "runs/ablations"
    """Where the runs are kept: what is finished there is not trained again."""
    device: str = "auto"
    """auto, cpu, cuda."""
    out: str = "results"
    """The folder of the result files."""

    def __post_init__(self) -> None:
        for name in ("seconds_per_run", "basis_steps", "seeds", "samples"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        require(self.steps_per_run is None or self.steps_per_run > 0, "steps_per_run", self.steps_per_run, "1 or more")
        require(self.side_by_side is None or self.side_by_side > 0, "side_by_side", self.side_by_side, "1 or more")


def chosen_tables(config: AblateConfig) -> dict[str, tuple[TrainConfig, Table]]:
    """The tables that were asked for, by the name of their result file, each with the preset that it varies."""
    preset = PRESETS[config.data]
    names = [f"table{name}" for name in config.table] + [f"figure{name}" for name in config.figure]
    available = tables(preset)
    require(bool(names or config.basis or config.all), "table", None, "3, 4, 5; or --figure, --basis, --all")
    chosen = {}
    for name in available if config.all else names:
        rows = tuple(replace(row, steps=config.steps_per_run) for row in available[name].rows)
        chosen[name] = preset, replace(available[name], rows=rows)
    if config.basis or config.all:
        colour = preset if preset.model.channels == 3 else PRESETS["photographs"]
        chosen["basis"] = colour, bases(colour, config.basis_steps)
    return chosen


class Runs:
    """The training runs behind rows, kept in a folder and trained when they are missing."""

    def __init__(self, config: AblateConfig):
        self.config, self.device = config, resolve_device(config.device)
        on_gpu = self.device.type == "cuda"
        self.side_by_side = config.side_by_side or (1 if on_gpu else os.cpu_count() or 1)
        # One thread for each of several runs: threads of two runs on the same cores wait for each other in circles.
        self.environment = os.environ | ({} if on_gpu else {"OMP_NUM_THREADS": "1"})

    def folder(self, preset: TrainConfig, row: Row, seed: int) -> Path:
        """Where a row's run of one seed is kept: its name says all that differs from the preset."""
        limit = f"{row.steps}steps" if row.steps else f"{self.config.seconds_per_run:g}s"
        parts = [f"{name}={value}" for name, value in sorted(row.model.items()) if getattr(preset.model, name) != value]
        return Path(self.config.runs) / preset.preset / limit / (",".join(parts) or "preset") / f"seed{seed}"

    def train(self, preset: TrainConfig, row: Row, seed: int) -> None:
        """Train a row's run, or go on with it, and distil it if the row needs a student."""
        folder, minutes = self.folder(preset, row, seed), self.config.seconds_per_run / 60
        limit = ["--steps", row.steps] if row.steps else ["--max-minutes", minutes]
        if not (folder / "finished").exists():
            model = [part for name, value in row.model.items() for part in model_flag(name, value)]
            quiet = ["--validate-every", 0, "--sample-every", 0, "--checkpoint-every", 1000]
            place = ["--out", folder, "--resume", "--seed", seed, "--data-root", self.config.data_root]
            self._run("train", "--preset", preset.preset, *place, *limit, *quiet, *model)
            (folder / "finished").touch()
        if "--student" in row.sampling and not (folder / "distilled").exists():
            quiet = ["--validate-every", 0, "--sample-every", 0, "--dropout", 0.1, "--data-root", self.config.data_root]
            self._run("distill", "--run", folder, "--resume", *limit, *quiet)
            (folder / "distilled").touch()

    def figures(self, preset: TrainConfig, row: Row, seed: int) -> dict[str, Any]:
        """What `farmer_ref.evaluate` says of a row's run on the test split, kept beside it."""
        folder = self.folder(preset, row, seed)
        name = "_".join(["figures", str(self.config.samples), *row.sampling]).replace("--", "")
        path = folder / (re.sub(r"[^\w.]+", "-", name) + ".json")
        if not path.exists():
            place = ["--run", folder, "--out", path, "--samples", self.config.samples]
            self._run("evaluate", *place, "--seed", seed, "--data-root", self.config.data_root, *row.sampling)
        return json.loads(path.read_text())

    def in_parallel(self, what: str, work: Callable[..., Any], jobs: Iterable[tuple]) -> list[Any]:
        """work(*job) for all jobs, `side_by_side` at a time, with a progress bar; in the order of the jobs."""
        jobs = list(jobs)
        with ThreadPoolExecutor(self.side_by_side) as pool:
            return list(tqdm(pool.map(lambda job: work(*job), jobs), desc=what, unit="run", total=len(jobs)))

    def _run(self, command: str, *arguments: object) -> None:
        line = [sys.executable, "-m", f"farmer_ref.{command}", *map(str, arguments), "--device", str(self.device)]
        done = subprocess.run(line, capture_output=True, text=True, env=self.environment)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"python {' '.join(line[1:])} ended with {done.returncode}: {last}")


def measure(runs: Runs, preset: TrainConfig, table: Table) -> list[dict[str, Any]]:
    """The rows of a table: figures of each seed, and their mean and spread."""
    seeds = range(runs.config.seeds)
    trainings = {}
    for row in table.rows:
        for seed in seeds:
            key = (runs.folder(preset, row, seed), "--student" in row.sampling)
            trainings[key] = (preset, row, seed)
    with_student = {folder for folder, student in trainings if student}
    jobs = [job for (folder, student), job in trainings.items() if student or folder not in with_student]
    runs.in_parallel("training", runs.train, jobs)
    scored = runs.in_parallel("scoring", runs.figures, [(preset, row, seed) for row in table.rows for seed in seeds])
    rows = []
    for number, row in enumerate(table.rows):
        mine = scored[number * len(seeds) : (number + 1) * len(seeds)]
        states = [last_state(runs.folder(preset, row, seed)) for seed in seeds]
        measured: dict[str, Any] = {"name": row.name, "model": row.model, "sampling": row.sampling, "paper": row.paper}
        for name in MEASURES:
            values = [figures[name] for figures in mine]
            measured[name] = {**mean_and_spread(values), "seeds": values}
        measured["steps"] = [state["step"] for state in states]
        measured["training_seconds"] = [state["seconds"] for state in states]
        if table.timed:
            measured["seconds_per_image"] = seconds_per_image(runs, runs.folder(preset, row, 0), row)
        rows.append(measured)
    return rows


def model_flag(name: str, value: object) -> list[object]:
    """A field of the model and its value as arguments of `farmer_ref.train`."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--model.{flag}" if value else f"--model.no-{flag}"]
    return [f"--model.{flag}", value]


@torch.no_grad()
def seconds_per_image(runs: Runs, folder: Path, row: Row) -> dict[str, float]:
    """Median seconds per image of the flow's forward pass, the prior's sampling and the way back, at batch 16."""
    model = load_run(str(folder)).to(runs.device)
    student = OneStepStudent.from_pretrained(folder, model.flow) if "--student" in row.sampling else None
    labels = torch.zeros(TIMED_BATCH, dtype=torch.long, device=runs.device)
    z = model.prior.sample(labels)
    images = model.decode(z)
    work = {
        "forward": lambda: model.encode(images),
        "prior": lambda: model.prior.sample(labels),
        "back": lambda: model.decode(z, student=student),
    }
    return {
        name: statistics.median([timed(function, runs.device) for _ in range(6)][1:]) / TIMED_BATCH
        for name, function in work.items()
    }


@torch.no_grad()
def by_log_determinant(runs: Runs, preset: TrainConfig, row: Row) -> list[dict[str, float]]:
    """Samples in fifths by their log-determinant: sharpness, and the share read as their class (Fig. 8).

    Sharpness is the mean absolute difference of neighbouring pixels, over that of real test images.
    """
    model = load_run(str(runs.folder(preset, row, 0))).to(runs.device)
    reader, test = (load_split(preset.dataset, s, preset.model, runs.config.data_root) for s in ("train", "test"))
    reader = Reader(reader)

    def sharpness(values: torch.Tensor) -> torch.Tensor:
        values = values.double()
        return (values.diff(dim=2).abs().mean((1, 2, 3)) + values.diff(dim=3).abs().mean((1, 2, 3))) / 2

    real = float(sharpness(next(batches(test, len(test)))[0]).mean())
    labels = torch.arange(runs.config.samples, device=runs.device) % max(1, preset.model.num_classes)
    generator = torch.Generator(runs.device).manual_seed(0)
    images = torch.cat([model.decode(model.prior.sample(part, generator=generator)) for part in labels.split(100)])
    logdet = torch.cat([model.encode(part)[1] for part in images.split(100)])
    values, rows = model.dequantiser.quantise(images).cpu(), []
    for chosen in logdet.argsort().cpu().chunk(QUINTILES):
        rows.append(
            {
                "mean_logdet": float(logdet[chosen].mean()),
                "sharpness": float(sharpness(values[chosen]).mean()) / real,
                "share_read_as_class": reader.share_read(values[chosen], labels.cpu()[chosen]),
            }
        )
    return rows


def verdict(table: Table, better: dict, worse: dict) -> dict[str, Any]:
    """Whether our figures order two rows as the paper does: "holds", "does not hold", or "cannot be told".

    Told apart means that the means differ by more than twice the standard error of their difference over seeds.
    """
    ours, theirs = better[table.measure], worse[table.measure]
    gain, count = theirs["mean"] - ours["mean"], len(ours["seeds"])
    spreads = [figure["standard_deviation"] for figure in (ours, theirs)]
    claim = {"claim": f"{better['name']} better than {worse['name']}", "gain": gain}
    if None in spreads:
        return {**claim, "verdict": "cannot be told from one seed"}
    error = math.sqrt(sum(spread**2 for spread in spreads) / count)
    told = "holds" if gain > 2 * error else "does not hold" if gain < -2 * error else "cannot be told within the spread"
    return {**claim, "standard_error": error, "verdict": told}


def describe(record: dict[str, Any]) -> str:
    """A result as a table to read, the paper's column beside ours."""
    lines = [record["title"], record["note"]] if record["note"] else [record["title"]]
    width = max(len(row["name"]) for row in record["rows"])
    heads = "".join(f"{heading:>18s}" for heading, _ in MEASURES.values())
    lines.append(f"{'':{width}s}{heads}{'steps':>8s}   paper")
    for row in record["rows"]:
        cells = ""
        for name, (_, form) in MEASURES.items():
            spread = row[name]["standard_deviation"]
            cell = f"{row[name]['mean']:{form}}" + (f" ± {spread:{form}}" if spread is not None else "")
            cells += f"{cell:>18s}"
        lines.append(f"{row['name']:{width}s}{cells}{statistics.mean(row['steps']):8.0f}   {row['paper']}")
        if "seconds_per_image" in row:
            parts = ", ".join(f"{part} {seconds:.5f} s" for part, seconds in row["seconds_per_image"].items())
            lines.append(f"{'':{width}s}    per image at batch {TIMED_BATCH}: {parts}")
    lines += [f"  {claim['claim']}: {claim['verdict']} (gain {claim['gain']:.3f})" for claim in record["claims"]]
    for fifth in record.get("fifths", []):
        lines.append("  " + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in fifth.items()))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Train what is missing, measure, write results/*.json, print."""
    description = "Check the tables and figures of the paper at small scale."
    config = cli.parse("farmer_ref.ablate", AblateConfig(), description, argv)
    runs = Runs(config)
    if runs.device.type == "cpu":
        torch.set_num_threads(1)
    for name, (preset, table) in chosen_tables(config).items():
        load_split(preset.dataset, "test", preset.model, config.data_root, config.download)  # or say so before the work
        rows = measure(runs, preset, table)
        by_name = {row["name"]: row for row in rows}
        record = {
            **provenance(runs.device),
            "title": table.title,
            "note": table.note,
            "data": preset.preset,
            "seconds_per_run": config.seconds_per_run,
            "steps_per_run": config.steps_per_run,
            "seeds": config.seeds,
            "samples": config.samples,
            "rows": rows,
            "claims": [verdict(table, by_name[better], by_name[worse]) for better, worse in table.claims],
        }
        if name == "figure8":
            record["fifths"] = by_log_determinant(runs, preset, table.rows[0])
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        suffix = "" if preset.preset in ("digits", "photographs") else f"_{preset.preset}"
        text = json.dumps(record, indent=2) + "\n"
        replace_file(out / f"{name}{suffix}.json", lambda path, text=text: path.write_text(text))
        print(describe(record), flush=True)


if __name__ == "__main__":
    cli.run(main)
