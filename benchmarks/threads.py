"""CPU threads on a quiet and on a busy machine: `python -m benchmarks.threads`. Writes results/threads.json.

A digits step and the drawing of one digit, with no, one and two other programs at work (busy loops of one thread, which
this benchmark starts): with all threads and several of OpenMP's ways of waiting, with one thread, and with the
number that the commands choose. Every row is a process of its own in every round, since OpenMP reads its settings once;
rounds go through all rows, so that what the machine does in between affects them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks.cpu_training import training_step
from farmer_ref import Farmer
from farmer_ref.support import cli
from farmer_ref.support.files import read_json, write_json
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import settings_class
from farmer_ref.training.threads import choose_threads

BUSY = "while True: pass"
WAYS: dict[str, dict[str, str]] = {
    "all threads": {},
    "all threads, GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "all threads, GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "all threads, GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "all threads, OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "chosen (ours)": {},
}


@settings_class
class ThreadsBenchmark:
    """The length of the measurements."""

    neighbours: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Numbers of other programs at work; rows of other numbers stay in the file."""
    rounds: PositiveInt = 3
    """How often each row is measured."""
    seconds: PositiveFloat = 2.0
    """Seconds of steps, and half as many of samples, for each row in each round."""
    row: str = ""
    """Measure one row in this process and print it, as the benchmark asks of the processes that it starts."""


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """`count` other programs at work, each with one thread."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def repeated(work: Callable[[], object], seconds: float, check: Callable[[float], None]) -> list[float]:
    """Seconds of each call of `work`, which is called for some seconds."""
    work()
    times, began = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
        check(times[-1])
    return times


def summary(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """All rounds of one kind of work: milliseconds by median and 90th percentile, and the threads of the last round."""
    times = sorted(1000 * seconds for part in parts for seconds in part["seconds"])
    quantiles = {"median": statistics.median(times), "p90": times[int(0.9 * len(times))]}
    return {**quantiles, "count": len(times), "threads": parts[-1]["threads"]}


def one_row(config: ThreadsBenchmark) -> dict[str, Any]:
    """Steps and samples, in this process."""
    model, device = Farmer.from_pretrained("digits"), torch.device("cpu")
    ours = config.row == "chosen (ours)"
    choose = partial(choose_threads, model, device=device, wanted=None if ours else torch.get_num_threads())
    step = training_step("digits")
    choice = choose(images=64, tokens=model.config.tokens)
    steps = repeated(step, config.seconds, choice.check)
    found = {"step": {"seconds": steps, "threads": torch.get_num_threads()}}
    choice = choose(images=1, tokens=1)
    draw = partial(model.sample, torch.tensor([3]))
    samples = repeated(draw, config.seconds / 2, choice.check)
    return found | {"sample": {"seconds": samples, "threads": torch.get_num_threads()}}


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.threads", ThreadsBenchmark(), "Threads on a quiet and on a busy machine.", argv)
    if config.row:
        print(json.dumps(one_row(config)))
        return
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    path = ROOT / "results" / "threads.json"
    rows = read_json(path, dict[str, Any])["rows"] if path.exists() else []
    rows = [row for row in rows if row["neighbours"] not in config.neighbours]
    made = {**provenance(torch.device("cpu")), "seconds": config.seconds, "rounds": config.rounds}
    for neighbours in config.neighbours:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
        for name, environment in [*WAYS.items()] * config.rounds:
            line = [sys.executable, "-m", "benchmarks.threads", "--row", name, "--seconds", str(config.seconds)]
            with busy(neighbours):
                done = subprocess.run(line, env=clean | environment, stdout=subprocess.PIPE, check=True, text=True)
            found[name].append(json.loads(done.stdout))
        for name, parts in found.items():
            step, sample = (summary([part[work] for part in parts]) for work in ("step", "sample"))
            rows.append({"neighbours": neighbours, "threads": name, "made": made, "step": step, "sample": sample})
            print(
                f"{neighbours} neighbours, {name:38s} step {step['median']:6.0f} ms (90%: {step['p90']:6.0f}), "
                f"sample {sample['median']:6.1f} ms (90%: {sample['p90']:6.1f})",
                flush=True,
            )
    rows.sort(key=lambda row: row["neighbours"])
    write_json(path, {**made, "rows": rows})


if __name__ == "__main__":
    cli.run(main)
