"""Training on a CPU: `python -m benchmarks.cpu_training [--before COMMIT]`. Writes results/cpu_training.json.

A whole training step (images, forward and backward pass, optimiser, average) of the digits and of the 28x28 model, as
it is, without each of the things that make it fast, with what was tried and not taken, and at an earlier commit. Every
row is a process with one thread; they take their steps in turn, a few each, so that what the machine does affects them
all. Tokens a second, and the share of the fastest matrix product that the same processor computes in between.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt

from farmer_ref.data.order import Batch, training_images
from farmer_ref.model.farmer import Farmer, negative_log_likelihood
from farmer_ref.model.transformer import TrainingPass, TransformerLayer
from farmer_ref.support import cli
from farmer_ref.support.files import write_json
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import settings_class
from farmer_ref.training import trainer
from farmer_ref.training.costs import training_flops
from farmer_ref.training.presets import PRESETS

SIDES = ((1024, 512, 512), (2048, 384, 96), (1024, 256, 64))  # of the matrix products whose fastest is the peak
NOW, BEFORE = "now", "before"
WITHOUT = {"PyTorch's own products": "products", "memory returned to the system": "memory"}
TRIED = {
    "the average every 10 steps": "average",
    "bfloat16 layers": "bfloat16",
    "plain attention": "attention",
}


@settings_class
class TrainingBenchmark:
    """What to measure, and for how long."""

    before: str = ""
    """An earlier commit to compare with; empty: none."""
    presets: tuple[str, ...] = ("digits", "mnist")
    """The presets."""
    rounds: PositiveInt = 8
    """Rounds, in each of which every row takes `steps` steps."""
    steps: PositiveInt = 4
    """Steps of a row in a round."""
    tried: bool = True
    """Measure what was tried and not taken, too."""
    compiled: bool = False
    """Measure compiled layers, too, which takes minutes."""
    processes: bool = True
    """Compare two processes of one thread with one of two, too."""
    out: str = "cpu_training"
    """Name of the file in results/: processors differ, and each has its own."""
    row: str = ""
    """Take the steps of one row in this process when asked on standard input, as the benchmark does."""


def training_step(preset: str, *, average_every: int = 1, precision: str = "float32") -> Callable[[], float]:
    """A function that takes one step of a preset's training on random images, and returns the loss."""
    config = dataclasses.replace(PRESETS[preset], device="cpu", precision=precision)
    shape, count = dataclasses.replace(config.model, pixels="linear"), config.batch_size  # the same at every commit
    device = trainer.set_up(config)
    torch.manual_seed(0)
    model = Farmer(shape).train()
    values = torch.randint(shape.levels, (count, shape.channels, shape.image_size, shape.image_size)).to(torch.uint8)
    batch = Batch(0, values, torch.randint(shape.num_classes, (count,)))
    optimiser = trainer.make_optimiser(model, config)
    average = trainer.MovingAverage(model, lambda: Farmer(shape), decay=config.ema_decay)
    done = 0

    def step() -> float:
        nonlocal done
        optimiser.zero_grad(set_to_none=True)
        images, labels = training_images(
            batch, model.dequantiser, seed=0, progress=0.0, label_dropout=0.1, device=device
        )
        torch.manual_seed(done)
        with trainer.autocast(device, precision):
            terms = model(images, labels, TrainingPass(rows=torch.arange(count), batch_size=count))
        loss = negative_log_likelihood(terms, shape.dimensions)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimiser.step()
        done += 1
        if done % average_every == 0:
            average.update(done)
        return loss.item()

    return step


def changed_step(preset: str, change: str) -> Callable[[], float]:
    """The step of one row."""
    if change == "products":
        from farmer_ref.model import linear

        linear.least_weights = lambda: math.inf
    elif change == "memory":
        trainer.keep_freed_memory = lambda: None
    elif change == "attention":
        torch.nn.functional.scaled_dot_product_attention = plain_attention
    elif change == "compile":
        TransformerLayer.forward = torch.compile(TransformerLayer.forward)
    return training_step(
        preset,
        average_every=10 if change == "average" else 1,
        precision="bfloat16" if change == "bfloat16" else "float32",
    )


def plain_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, attn_mask: None, is_causal: bool
) -> torch.Tensor:
    """Causal attention by two batched products and a softmax."""
    mask = torch.full((query.shape[-2], keys.shape[-2]), -math.inf).triu(1) if is_causal else 0.0
    return (query @ keys.mT / query.shape[-1] ** 0.5 + mask).softmax(-1) @ values


def serve(preset: str, change: str) -> None:
    """Take as many steps as each line of standard input says; answer with their seconds, and the last loss."""
    torch.set_num_threads(1)
    step = changed_step(preset, change)
    losses = [step() for _ in range(3)]
    print(json.dumps({"losses": losses}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), flush=True)


def matrix_peak() -> dict[str, float]:
    """The most operations a second of a float32 matrix product on one thread: PyTorch's own, and oneDNN's."""
    torch.set_num_threads(1)
    ways = {"pytorch": torch.nn.functional.linear}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        ways["onednn"] = lambda x, weight: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    found = {}
    for name, product in ways.items():
        rates = []
        for rows, inner, columns in SIDES:
            x, weight = torch.randn(rows, inner), torch.randn(columns, inner)
            for _ in range(12):
                began = time.perf_counter()
                product(x, weight)
                rates.append(2 * rows * inner * columns / (time.perf_counter() - began))
        found[name] = max(rates)
    return found


def check_out(commit: str, folder: str) -> None:
    """The package of a commit, into a folder."""
    packed = subprocess.run(["git", "archive", commit, "farmer_ref"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")


def compare(config: TrainingBenchmark, preset: str, before: str) -> dict[str, Any]:
    """The rows of one preset, step by step in turn; `before` is the folder of the earlier commit."""
    changes = {NOW: ""} | WITHOUT | (TRIED if config.tried else {})
    if config.compiled:
        changes["compiled layers"] = "compile"
    if config.before:
        changes = {BEFORE: "", **changes}
    processes = {}
    for name, change in changes.items():
        path = before if name == BEFORE else str(ROOT)
        program = [sys.executable, str(Path(__file__).resolve()), "--row", f"{preset} {change}"]
        processes[name] = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
    losses = {name: json.loads(process.stdout.readline())["losses"] for name, process in processes.items()}
    times, peaks = {name: [] for name in changes}, []
    for _ in range(config.rounds):
        for name, process in processes.items():
            process.stdin.write(f"{config.steps}\n")
            process.stdin.flush()
            times[name].append(json.loads(process.stdout.readline()))
        peaks.append(matrix_peak())
    for process in processes.values():
        process.stdin.close()
        process.wait()
    peak = {way: max(found[way] for found in peaks) for way in peaks[0]}
    model, count = PRESETS[preset].model, PRESETS[preset].batch_size
    base, rows = BEFORE if config.before else NOW, []
    for name, found in times.items():
        seconds = statistics.median(second for part in found for second in part)
        rows.append(
            {
                "row": name,
                "milliseconds": 1000 * seconds,
                "images_per_second": count / seconds,
                "tokens_per_second": count * model.tokens / seconds,
                "share_of_matrix_peak": training_flops(model) * count / seconds / max(peak.values()),
                f"times_{base}": statistics.median(
                    statistics.median(theirs) / statistics.median(ours)
                    for ours, theirs in zip(found, times[base], strict=True)
                ),
                "loss": losses[name][-1],
            }
        )
        print(
            f"{preset}, {name:32s} {rows[-1]['milliseconds']:7.1f} ms, {rows[-1]['tokens_per_second']:8,.0f} tokens/s, "
            f"{rows[-1]['share_of_matrix_peak']:4.0%} of the peak, {rows[-1][f'times_{base}']:.2f} times {base}, "
            f"loss {rows[-1]['loss']:.6f}",
            flush=True,
        )
    print({way: f"{rate / 1e9:.0f} GFLOP/s" for way, rate in peak.items()})
    return {"matrix_peak": peak, "rows": rows}


def processes_and_threads(preset: str) -> dict[str, float]:
    """Images a second of one process with one and two threads, and of two processes with one each."""
    found = {}
    run = ["-m", "farmer_ref.train", "--preset", preset, "--steps", "60", "--log-every", "30", "--device", "cpu"]
    run += ["--validate-every", "0", "--sample-every", "0", "--no-download"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *run]
    ways = {"1 process of 1 thread": (run, 1), "1 process of 2 threads": (run, 2), "2 processes of 1 thread": (two, 1)}
    for name, (line, threads) in ways.items():
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(
                [sys.executable, *line, "--threads", str(threads), "--out", f"{place}/run"],
                check=True,
                capture_output=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
            lines = (Path(place) / "run" / "metrics.jsonl").read_text().splitlines()
        found[name] = [json.loads(line) for line in lines if "images_per_second" in line][-1]["images_per_second"]
        print(f"{preset}, {name}: {found[name]:.0f} images/s", flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.cpu_training", TrainingBenchmark(), "Time training on a CPU.", argv)
    if config.row:
        serve(*config.row.split(" ", 1))
        return
    record: dict[str, Any] = {**provenance(torch.device("cpu")), "rounds": config.rounds, "steps": config.steps}
    with tempfile.TemporaryDirectory() as before:
        if config.before:
            check_out(config.before, before)
            record["before"] = config.before
        record["presets"] = {preset: compare(config, preset, before) for preset in config.presets}
    path = ROOT / "results" / f"{config.out}.json"
    write_json(path, record)
    if config.processes:
        write_json(path, record | {"processes": processes_and_threads("digits")})


if __name__ == "__main__":
    cli.run(main)
