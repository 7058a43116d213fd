"""Train the digits as `make train` does, with several seeds: `python -m benchmarks.digits`.

Writes results/<preset>.json: the test figures of each seed, their mean and standard deviation, and each seed's
validation curve. With `--ship`, the first seed's weights replace those that ship with the package, with a record of
their origin.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from farmer_ref import PRESETS, train
from farmer_ref.evaluate import EvaluateConfig, evaluate
from farmer_ref.support import cli
from farmer_ref.support.files import PRETRAINED, write_json
from farmer_ref.support.record import ROOT, mean_and_spread, provenance
from farmer_ref.training.checkpoint import last_state

AVERAGED = ("bits_per_dim", "nats_per_dim", "sample_accuracy", "frechet_distance", "training_minutes")


@dataclass(frozen=True)
class DigitsConfig:
    """Seeds and settings; everything else comes from the preset."""

    preset: str = "digits"
    """digits or digits-noise."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training run per seed, one after another."""
    threads: int = 2
    """CPU threads of each run."""
    draws: int = 16
    """Dequantisations per test image."""
    samples: int = 1000
    """Samples to classify."""
    ship: bool = False
    """Ship the first seed's weights with the package."""


def train_and_score(config: DigitsConfig, seed: int, folder: Path) -> dict:
    """Train the preset once, and measure it on the test split."""
    arguments = ["--preset", config.preset, "--max-minutes", "6", "--device", "cpu"]  # as in the Makefile
    train.main([*arguments, "--out", str(folder), "--seed", str(seed)])
    state = last_state(folder)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [record for record in records if any(name.startswith("validation") for name in record)]
    scored = EvaluateConfig(
        run=str(folder),
        draws=config.draws,
        samples=config.samples,
        importance_weighted=PRESETS[config.preset].model.dequantisation == "uniform",
    )
    figures = evaluate(scored)
    del figures["run"]
    minutes = state["seconds"] / 60
    return {"seed": seed, "steps": state["step"], "training_minutes": minutes, **figures, "validation_curve": curve}


def ship(name: str, folder: Path, figures: dict, made: dict) -> None:
    """Copy a run's weights into the package, with a record of their origin and test figures."""
    target = PRETRAINED / name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "model.safetensors", target)
    config = json.loads((folder / "config.json").read_text())
    config["training"]["out"] = PRESETS[name].out  # not a path on the machine that trained it
    write_json(target / "config.json", config)
    figures = {name: value for name, value in figures.items() if name != "validation_curve"}
    write_json(target / "record.json", {**made, **figures})


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.digits", DigitsConfig(), "Train the digits with several seeds and score them.", argv)
    torch.set_num_threads(config.threads)
    made = provenance(torch.device("cpu"))
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, seed in enumerate(config.seeds):
            folder = Path(temporary) / f"seed-{seed}"
            runs.append(train_and_score(config, seed, folder))
            print(json.dumps({name: value for name, value in runs[-1].items() if name in ("seed", *AVERAGED)}))
            if config.ship and number == 0:
                ship(config.preset, folder, runs[0], made)
    averages = {}
    for name in AVERAGED:
        values = [run[name] for run in runs if run[name] is not None]
        if values:
            averages[name] = mean_and_spread(values)
    settings = dataclasses.asdict(PRESETS[config.preset])
    record = {**made, "threads": config.threads, "settings": settings, **averages, "runs": runs}
    out = ROOT / "results" / f"{config.preset}.json"
    out.parent.mkdir(exist_ok=True)
    write_json(out, record)
    print(json.dumps(averages, indent=2))


if __name__ == "__main__":
    cli.run(main)
