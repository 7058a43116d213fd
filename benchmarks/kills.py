"""Does a kill lose anything? `python -m benchmarks.kills`. Writes results/kills.json.

`train` and `distill` are killed (SIGKILL, which no program can catch) at random instants of a short run, then resumed
to its end. Nothing is lost if what the kill left can be read (the model, the log, the newest checkpoint), `--resume`
ends well, metrics.jsonl has every step once and in order, all of its values are finite, and the final weights, averages
and optimiser's moments equal those of a run that was left alone, bit for bit. Checkpoints are written at every second
step, so that many kills fall into a write. The seed decides the instants; it is the date unless given.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt

from benchmarks.children import Command, ended, last_line, seed_or_date, start
from farmer_ref import distill, train
from farmer_ref.model.pretrained import STUDENT
from farmer_ref.support import cli
from farmer_ref.support.errors import InputError
from farmer_ref.support.files import read_metrics, read_weights, write_json
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import Whole, settings_class
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.runs import Run

STEPS = 24
EVERY = ["--steps", str(STEPS), "--log-every", "1", "--checkpoint-every", "2", "--validate-every", "12"]
EVERY += ["--sample-every", "0", "--warmup-steps", "5", "--device", "cpu"]


@settings_class
class KillsBenchmark:
    """How many kills of each command."""

    kills: PositiveInt = 30
    """Kills of each command."""
    seed: Whole = 0
    """Decides the instants; 0: the date, as 20260131."""
    out: str = "kills"
    """The name of the file in results/."""


@dataclasses.dataclass
class Victim:
    """A command, its arguments, and where in its folder the log and the checkpoints are, and the weights it makes."""

    main: Command
    arguments: list[str]
    log: str
    weights: str

    def run(self, folder: Path, *more: str) -> int:
        """Start it in a folder; the child."""
        folder.mkdir(parents=True, exist_ok=True)
        return start(self.main, [*self.arguments, *EVERY, *more, "--out", "run"], folder)


def state_of(victim: Victim, folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a finished run: the weights that it made, and its newest checkpoint."""
    run = folder / "run"
    newest = checkpoints(run / victim.log)[-1]
    files = [run / victim.weights, *sorted(newest.glob("*.safetensors"))]
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in read_weights(file).items()}


def left_behind(victim: Victim, folder: Path) -> dict[str, Any]:
    """Read what a kill left, as another command would: its newest checkpoint, and whether it fell into a write."""
    run, log = folder / "run", folder / "run" / victim.log
    if (run / "config.json").exists():
        Run.open(run).load()
    if (run / STUDENT).exists():
        read_weights(run / STUDENT)
    if (log / "metrics.jsonl").exists():
        read_metrics(log)
    found = checkpoints(log)
    begun = [path for path in run.rglob(".*") if path.name.endswith((".tmp", ".old"))]
    return {"checkpoint": int(found[-1].name.removeprefix("step-")) if found else None, "in_a_write": bool(begun)}


def loss_of_a_kill(victim: Victim, folder: Path, code: int, whole: dict[str, torch.Tensor]) -> str:
    """What a resumed run lacks that a run left alone has, in words; empty if nothing."""
    if code:
        return f"--resume ended with {code}: {last_line(folder)}"
    records = read_metrics(folder / "run" / victim.log)
    steps = [record["step"] for record in records if "learning_rate" in record]
    if steps != list(range(1, STEPS + 1)):
        return f"metrics.jsonl has the steps {steps}"
    if any(value is None for record in records for value in record.values()):
        return "metrics.jsonl has values that are not finite"
    state = state_of(victim, folder)
    if state.keys() != whole.keys():
        return f"tensors differ in name: {sorted(state.keys() ^ whole.keys())[:3]}"
    changed = [name for name, tensor in whole.items() if not torch.equal(state[name], tensor)]
    return f"{len(changed)} tensors differ, {changed[0]} first" if changed else ""


def kill(victim: Victim, folder: Path, after: float) -> bool:
    """Start a command and kill it after so many seconds; whether it was still running."""
    child = victim.run(folder)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return ended(child) == -signal.SIGKILL


def measure(name: str, victim: Victim, home: Path, *, kills: int, generator: random.Random) -> dict[str, Any]:
    """Kill a command so many times, each in a run of its own, and resume it."""
    began = time.perf_counter()
    if code := ended(victim.run(home / "alone")):
        raise InputError(f"{name} ended with {code} ({last_line(home / 'alone')}); allowed: 0")
    duration, whole = time.perf_counter() - began, state_of(victim, home / "alone")
    left, lost, made, number = [], [], 0, 0
    while made < kills:
        folder, number = home / str(number), number + 1
        if kill(victim, folder, generator.uniform(0, duration)):
            made += 1
            try:
                left.append(left_behind(victim, folder))
                code = ended(victim.run(folder, "--resume"))
                problem = loss_of_a_kill(victim, folder, code, whole)
            except InputError as error:
                problem = str(error)
            if problem:
                lost.append({"kill": made, "problem": problem})
                print(f"{name}, kill {made}: {problem}", flush=True)
        shutil.rmtree(folder)
    steps = [one["checkpoint"] for one in left]
    return {
        "kills": made,
        "seconds_of_a_run": duration,
        "before_the_first_checkpoint": steps.count(None),
        "in_a_write": sum(one["in_a_write"] for one in left),
        "newest_checkpoints": sorted(step for step in steps if step is not None),
        "equal_to_a_run_left_alone": made - len(lost),
        "lost": lost,
    }


def main(argv: list[str] | None = None) -> None:
    """Kill, resume, compare, write."""
    config = cli.parse("benchmarks.kills", KillsBenchmark(), "Kill train and distill at random instants.", argv)
    torch.set_num_threads(1)
    seed, made = seed_or_date(config.seed), provenance(torch.device("cpu"))
    generator, found = random.Random(seed), dict[str, Any]()
    with tempfile.TemporaryDirectory() as root:
        home, teacher = Path(root), Path(root) / "teacher"
        training = Victim(train.main, ["--preset", "tiny"], "", "model.safetensors")
        # In this process, so that no child imports again what a command imports when it needs it.
        train.main([*training.arguments, *EVERY, "--out", str(teacher)])
        distilling = Victim(distill.main, ["--run", str(teacher)], "distillation", STUDENT)
        for name, victim in (("train", training), ("distill", distilling)):
            found[name] = measure(name, victim, home / name, kills=config.kills, generator=generator)
            equal, kills = found[name]["equal_to_a_run_left_alone"], found[name]["kills"]
            print(f"{name}: {equal} of {kills} killed runs ended as one that was left alone", flush=True)
    settings = {**dataclasses.asdict(config), "seed": seed, "steps": STEPS}
    write_json(ROOT / "results" / f"{config.out}.json", {**made, **settings, **found})


if __name__ == "__main__":
    cli.run(main)
