"""The seconds that each notebook's cells need: `python -m benchmarks.course` runs them all, one after another.

Writes results/course.json, which the teaching kit's table of timings reads.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from unittest import mock

import torch
from nbclient import NotebookClient
from pydantic import PositiveInt

from book import course
from farmer_ref.support import cli
from farmer_ref.support.files import write_json
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import settings_class


@settings_class
class CourseBenchmark:
    """How the notebooks are run."""

    threads: PositiveInt = 1
    """CPU threads."""


def seconds_of(stems: Sequence[str]) -> dict[str, float]:
    """The seconds of each notebook, its start and its imports included."""
    found = {}
    for path in course.paths():
        if path.stem in stems:
            began = time.perf_counter()
            place = {"metadata": {"path": course.NOTEBOOKS}}
            NotebookClient(course.read(path), timeout=600, kernel_name="python3", resources=place).execute()
            found[path.stem] = round(time.perf_counter() - began, 1)
            print(f"{path.stem}: {found[path.stem]:.0f} s", flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    """Run, time, write."""
    config = cli.parse("benchmarks.course", CourseBenchmark(), "Time the notebooks.", argv)
    record = {**provenance(torch.device("cpu")), **dataclasses.asdict(config)}
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": str(config.threads)}):
        seconds = seconds_of([path.stem for path in course.paths()])
    write_json(ROOT / "results" / "course.json", {**record, "seconds": seconds})


if __name__ == "__main__":
    cli.run(main)
