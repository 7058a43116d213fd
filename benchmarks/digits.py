"""Train the digits as `make train` does, with several seeds: `python -m benchmarks.digits`.

Writes results/<preset>.json (`--out`: another file of results/): the test figures of each seed, their mean and standard
deviation, and each seed's validation curve. With `--ship`, the first seed's weights replace those that ship with the
package, with a record of their origin.

`--rescore` trains nothing: where scoring has changed, it scores the shipped weights again and puts the new figures in
place of the old ones, in their record and in results/<preset>.json. The weights of the other seeds are not kept, and
their figures stay as they were measured; "rescored" says which seed was scored when.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import torch
from pydantic import PositiveInt

from farmer_ref import PRESETS, train
from farmer_ref.evaluate import EvaluateConfig, evaluate
from farmer_ref.support import cli
from farmer_ref.support.files import PRETRAINED, read_metrics, write_config, write_json
from farmer_ref.support.record import ROOT, mean_and_spread, provenance
from farmer_ref.support.settings import Whole, settings_class
from farmer_ref.training.checkpoint import last_state
from farmer_ref.training.runs import run_record, saved_settings

AVERAGED = ("bits_per_dim", "nats_per_dim", "sample_accuracy", "frechet_distance", "training_minutes")


@settings_class
class DigitsConfig:
    """Seeds and settings; everything else comes from the preset."""

    preset: str = "digits"
    """digits or digits-noise."""
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """One training run per seed, one after another."""
    threads: PositiveInt = 2
    """CPU threads of each run."""
    draws: PositiveInt = 16
    """Dequantisations per test image."""
    samples: PositiveInt = 1000
    """Samples to classify."""
    ship: bool = False
    """Ship the first seed's weights with the package."""
    rescore: bool = False
    """Score the shipped weights again, without training."""
    out: str = ""
    """Name of the file in results/, which --rescore does not ask for; empty: the preset's."""


def train_and_score(config: DigitsConfig, seed: int, folder: Path) -> dict:
    """Train the preset once, and measure it on the test split."""
    arguments = ["--preset", config.preset, "--max-minutes", "6", "--device", "cpu"]  # as in the Makefile
    arguments += ["--threads", str(config.threads)]
    train.main([*arguments, "--out", str(folder), "--seed", str(seed)])
    state = last_state(folder)
    curve = [record for record in read_metrics(folder) if any(name.startswith("validation") for name in record)]
    figures, minutes = scores(config, str(folder)), state.seconds / 60
    return {"seed": seed, "steps": state.step, "training_minutes": minutes, **figures, "validation_curve": curve}


def scores(config: DigitsConfig, run: str) -> dict:
    """The figures of a run, or of a shipped model, on the test split."""
    uniform = PRESETS[config.preset].model.dequantisation == "uniform"
    figures = evaluate(
        EvaluateConfig(run=run, draws=config.draws, samples=config.samples, importance_weighted=uniform, device="cpu")
    )
    del figures["run"]
    return figures


def ship(name: str, folder: Path, figures: dict, made: dict) -> None:
    """Copy a run's weights into the package, with a record of their origin and test figures."""
    target = PRETRAINED / name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "model.safetensors", target)
    settings = dataclasses.replace(saved_settings(folder), out=PRESETS[name].out)  # not that machine's folder
    write_config(target, run_record(settings))
    figures = {name: value for name, value in figures.items() if name != "validation_curve"}
    write_json(target / "record.json", {**made, **figures})


def averages(runs: list[dict]) -> dict:
    """Mean and standard deviation of the figures of several seeds."""
    columns = {name: [run[name] for run in runs if run[name] is not None] for name in AVERAGED}
    return {name: mean_and_spread(values) for name, values in columns.items() if values}


def rescore(config: DigitsConfig) -> None:
    """Score the shipped weights again, and put the figures where the old ones were; print both."""
    paths = PRETRAINED / config.preset / "record.json", ROOT / "results" / f"{config.preset}.json"
    record, results = (json.loads(path.read_text()) for path in paths)
    made, figures = provenance(torch.device("cpu")), scores(config, config.preset)
    (shipped,) = (run for run in results["runs"] if run["seed"] == record["seed"])
    for name, value in figures.items():
        if name in record and value != record[name]:
            print(f"{name}: {record[name]} before, {value} now")
    write_json(paths[0], {**record, **figures, "rescored": made})
    shipped.update(figures)
    write_json(paths[1], {**results, **averages(results["runs"]), "rescored": {"seeds": [record["seed"]], **made}})


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.digits", DigitsConfig(), "Train the digits with several seeds and score them.", argv)
    torch.set_num_threads(config.threads)
    if config.rescore:
        rescore(config)
        return
    made = provenance(torch.device("cpu"))
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, seed in enumerate(config.seeds):
            folder = Path(temporary) / f"seed-{seed}"
            runs.append(train_and_score(config, seed, folder))
            print(json.dumps({name: value for name, value in runs[-1].items() if name in ("seed", *AVERAGED)}))
            if config.ship and number == 0:
                ship(config.preset, folder, runs[0], made)
    means = averages(runs)
    settings = dataclasses.asdict(PRESETS[config.preset])
    record = {**made, "threads": config.threads, "settings": settings, **means, "runs": runs}
    out = ROOT / "results" / f"{config.out or config.preset}.json"
    out.parent.mkdir(exist_ok=True)
    write_json(out, record)
    print(json.dumps(means, indent=2))


if __name__ == "__main__":
    cli.run(main)
