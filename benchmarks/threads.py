"""CPU threads on a quiet and on a busy machine: `python -m benchmarks.threads`. Writes results/threads.json.

A digits step and the drawing of one digit, with no, one and two other programs at work (busy loops of one thread, which
this benchmark starts): with all threads and every way of waiting that OpenMP offers, with one thread, and with the
number that the commands choose. Every row is a process of its own, since OpenMP reads its settings once.
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
from pydantic import NonNegativeInt, PositiveFloat

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
    seconds: PositiveFloat = 3.0
    """Seconds of steps, and half as many of samples, for each row."""
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


def repeated(work: Callable[[], object], seconds: float, check: Callable[[float], None]) -> dict[str, float]:
    """Milliseconds of `work`, called for some seconds: median and 90th percentile."""
    work()
    times, began = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
        check(times[-1])
    times.sort()
    return {"median": 1000 * statistics.median(times), "p90": 1000 * times[int(0.9 * len(times))], "count": len(times)}


def one_row(config: ThreadsBenchmark) -> dict[str, Any]:
    """Steps and samples, in this process."""
    model, device = Farmer.from_pretrained("digits"), torch.device("cpu")
    ours = config.row == "chosen (ours)"
    choose = partial(choose_threads, model, device=device, wanted=None if ours else torch.get_num_threads())
    step = training_step("digits")
    choice = choose(images=64, tokens=model.config.tokens)
    found: dict[str, Any] = {"step": repeated(step, config.seconds, choice.check)}
    found["step"]["threads"] = torch.get_num_threads()
    choice = choose(images=1, tokens=1)
    draw = partial(model.sample, torch.tensor([3]))
    found["sample"] = repeated(draw, config.seconds / 2, choice.check)
    found["sample"]["threads"] = torch.get_num_threads()
    return found


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.threads", ThreadsBenchmark(), "Threads on a quiet and on a busy machine.", argv)
    if config.row:
        print(json.dumps(one_row(config)))
        return
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    path = ROOT / "results" / "threads.json"
    rows = read_json(path, dict[str, Any])["rows"] if path.exists() else []
    rows = [row for row in rows if row["neighbours"] not in config.neighbours]
    for neighbours in config.neighbours:
        for name, environment in WAYS.items():
            line = [sys.executable, "-m", "benchmarks.threads", "--row", name, "--seconds", str(config.seconds)]
            with busy(neighbours):
                done = subprocess.run(line, env=clean | environment, stdout=subprocess.PIPE, check=True, text=True)
            rows.append({"neighbours": neighbours, "threads": name, **json.loads(done.stdout)})
            step, sample = rows[-1]["step"], rows[-1]["sample"]
            print(
                f"{neighbours} neighbours, {name:38s} step {step['median']:6.0f} ms (90%: {step['p90']:6.0f}), "
                f"sample {sample['median']:6.1f} ms (90%: {sample['p90']:6.1f})",
                flush=True,
            )
    rows.sort(key=lambda row: row["neighbours"])
    write_json(path, {**provenance(torch.device("cpu")), "seconds": config.seconds, "rows": rows})


if __name__ == "__main__":
    cli.run(main)
