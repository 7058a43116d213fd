"""What several test modules share: running commands in this process, comparing runs, pictures to read."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from farmer_ref import sample, train
from farmer_ref.support.cli import run as run_command
from farmer_ref.support.files import read_weights
from farmer_ref.training.trainer import Trainer

QUICK = ["--preset", "tiny", "--steps", "20", "--validate-every", "0", "--sample-every", "0", "--device", "cpu"]


NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
STARTER = "raises-exception"  # the tag of an exercise's starter cell
JOBS = Path(__file__).parent / "training" / "torchrun.py"


def fails_with_one_line(capsys, main, arguments, *parts):
    """Exit code 2 and one line on standard error that has all `parts`; returns what was printed before it."""
    with pytest.raises(SystemExit) as raised:
        run_command(lambda: main([str(argument) for argument in arguments]))
    assert raised.value.code == 2
    printed = capsys.readouterr()
    lines = re.split(r"/(?:s|step|batch)\]\n|\r", printed.err)[-1]  # after a progress bar
    error = "".join(line for line in lines.splitlines(keepends=True) if not line.startswith("note: "))
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    for part in parts:
        assert part in error
    return printed.out


def draw(run, out, *arguments):
    sample.main(["--run", str(run), "--out", str(out), "--device", "cpu", *map(str, arguments)])


def folder_of_images(root, classes=("cat", "dog"), count=40, size=(20, 24)):
    """Class folders with one image of each kind that the loader must turn into RGB."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8))
            image = [image, image.convert("L"), image.convert("P"), image.convert("RGBA")][i % 4]
            image.save(root / name / f"{i:03d}.png")
    return f"folder:{root}"


def contents(folder):
    return {path.name: read_weights(path) for path in sorted(folder.glob("*.safetensors"))}


def weights_of(folder, kind):
    tensors = {name: tensor for file in contents(folder).values() for name, tensor in file.items()}
    return {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key in a[name]:
            assert torch.equal(a[name][key], b[name][key]), (name, key)


def stop_after(steps, arguments, main=train.main):
    """Train, as if interrupted (SIGTERM) during step `steps`."""
    optimise = Trainer._optimise

    def interrupting(trainer, batch):
        logged = optimise(trainer, batch)
        if trainer.step == steps:
            signal.raise_signal(signal.SIGTERM)
        return logged

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_optimise", interrupting)
        with pytest.raises(SystemExit) as left:
            main(arguments)
    assert left.value.code == 128 + signal.SIGTERM  # what follows in a Makefile must not go on


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def torchrun(*arguments, processes=2):
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*line, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@contextlib.contextmanager
def ending(process):
    """A process that does not outlive a test that fails."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its workers
            process.communicate()


def wait_until(condition, process, *, every=0.005, seconds=300):
    """Wait until a condition holds, which the process is to bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(every)


def run_jobs(*jobs):
    with ending(torchrun(JOBS, json.dumps(jobs))) as process:
        printed, problems = process.communicate(timeout=300)
    assert process.returncode == 0, problems
    return printed


def starters(name: str) -> list[nbformat.NotebookNode]:
    """The starter cells of a notebook's exercises."""
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells
    return [cell for cell in cells if STARTER in cell.metadata.get("tags", [])]


def solution_passes_starter(solution: ModuleType, name: str, function: str, **given: Any) -> None:
    """Run a starter cell with the solution's function in place of the one to write; `given`: what it uses of the
    notebook. It raises at the first assert that does not hold."""
    cell = next(cell for cell in starters(name) if f"def {function}(" in cell.source)
    rest = [node for node in ast.parse(cell.source).body if not isinstance(node, ast.FunctionDef)]
    exec(compile(ast.Module(rest, []), f"{name}.ipynb", "exec"), {**vars(solution), **given})


def labels_apart(figure: Figure) -> bool:
    """Whether no tick label below an axis is within two points of another, by the boxes of matplotlib's renderer."""
    figure.draw_without_rendering()
    boxes = []
    for axes in figure.axes:
        low, high = axes.get_xlim()
        if not (labels := axes.get_xticklabels()):  # another panel below has those of a shared axis
            continue
        places = zip(axes.get_xticks(), labels, strict=True)
        boxes += [label.get_window_extent() for place, label in places if low <= place <= high and label.get_text()]
    margin = figure.dpi / 72
    return not any(one.padded(margin).overlaps(two.padded(margin)) for one, two in itertools.combinations(boxes, 2))
