"""Inverses of the flow compared: `python -m benchmarks.inverses [--tarflow PATH]`. Writes results/inverses.json.

Flows trained on crops of scikit-learn's photographs (`benchmarks.photographs`; 4 blocks of 2 layers, width 256, D =
48), which take about half an hour to train on 2 cores the first time and are kept in runs/.

1. The number of sweeps, block by block, in which a parallel inverse agrees with the sequential one to 1e-5: started
from z, from zero, or from the student's guess; on all tokens at once, or on a window; with Anderson acceleration. The
winner is `farmer_ref.model.jacobi.inverse_jacobi`; the losers are here.
2. A matrix of method x batch: seconds, images per second, and the speed relative to our own unrecorded sequential
inverse, with the public TARFlow's inverse of a flow of the same shapes in the same rounds.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from pydantic import PositiveInt
from torch import Tensor

from benchmarks.photographs import BLOCKS, CHANNELS, LAYERS, PATCH_SIZE, WIDTH, trained_flow, trained_student
from benchmarks.tarflow import public_code
from benchmarks.timing import speedup
from farmer_ref.model import flow as flow_module
from farmer_ref.model.flow import AutoregressiveFlow, FlowBlock
from farmer_ref.model.jacobi import CONVERGED, inverse_jacobi
from farmer_ref.model.stepper import stepper
from farmer_ref.model.student import OneStepStudent
from farmer_ref.support import cli
from farmer_ref.support.files import write_json
from farmer_ref.support.parallel import resolve_device
from farmer_ref.support.record import ROOT, provenance, timed_in_turns
from farmer_ref.support.settings import settings_class

TOLERANCE = 1e-5
COUNTED = 4  # images for which sweeps are counted; the slowest one decides


@settings_class
class InverseBenchmark:
    """The methods to compare, and the measurement."""

    tarflow: str = ""
    """The folder of a clone of github.com/apple/ml-tarflow; empty: leave it out."""
    batches: tuple[PositiveInt, ...] = ()
    """Batch sizes of the matrix; default: 1 and 16, and 128 on a GPU."""
    tokens: tuple[PositiveInt, ...] = (64, 256)
    """Numbers of tokens for the sweeps; the matrix uses the last one."""
    rounds: PositiveInt = 5
    """Counted rounds of the matrix, after one of warm-up."""
    steps: PositiveInt = 500
    """Training steps of each flow and of each student."""
    threads: PositiveInt = 2
    """CPU threads."""
    device: str = "auto"
    """auto, cpu, cuda."""


# -- sweeps ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def fixed_point(
    block: FlowBlock, z: Tensor, *, start: Tensor | None = None, window: int | None = None, memory: int = 0
) -> tuple[Tensor, int]:
    """x and the sweeps of `jacobi.inverse_jacobi`, generalised to the losing rules.

    `start` replaces z as the first iterate, `window` limits how many tokens a sweep updates, and `memory` turns on
    Anderson acceleration: the combination of the last iterates with the smallest residual, image by image.
    """
    z = block.flip_if_reversed(z)
    positions, last = block.embedded_positions(None), z.shape[1] - 1
    x = (z if start is None else block.flip_if_reversed(start)).clone()
    x[:, 0] = z[:, 0]
    cache = block.transformer.new_cache(last)
    run = partial(block.transformer, cache=cache)
    begin, sweeps, history = 0, 0, []
    while begin < last:
        end = min(begin + (window or last), last)
        for layer in cache:
            layer.length = begin
        shift, log_scale = block.shift_and_log_scale(x[:, begin:end], positions[:, begin:end], run)
        new = torch.nan_to_num(z[:, begin + 1 : end + 1] * torch.exp(-log_scale) + shift, 0.0, 0.0, 0.0)
        before = x[:, begin + 1 : end + 1].clone()
        moved = ((new - before).abs().amax((0, 2)) > CONVERGED * TOLERANCE).nonzero().flatten().tolist()
        final = min((moved[0] if moved else end - begin) + 1, end - begin)
        x[:, begin + 1 : end + 1] = new
        if memory and window is None:
            history = [
                *[(a[:, -new.shape[1] :], b[:, -new.shape[1] :]) for a, b in history][1 - memory :],
                (before, new),
            ]
            if len(history) > 1:
                residual = torch.stack([(b - a).flatten(1) for a, b in history], -1)  # (B,n,m)
                image = torch.stack([b.flatten(1) for _, b in history], -1)
                difference = residual.diff(dim=-1)
                gram = difference.mT @ difference
                ridge = 1e-8 * gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] * torch.eye(gram.shape[-1])
                weights = torch.linalg.solve(gram + ridge, difference.mT @ residual[..., -1:])
                mixed = (image[..., -1:] - image.diff(dim=-1) @ weights).squeeze(-1).view_as(new)
                x[:, begin + 1 + final : end + 1] = mixed[:, final:]
        begin, sweeps = begin + final, sweeps + 1
    return block.flip_if_reversed(x), sweeps


def count_sweeps(flow: AutoregressiveFlow, student: OneStepStudent) -> list[dict]:
    """Sweeps of each rule, block by block, and its largest difference from the sequential inverse."""
    tokens = flow.tokens
    z = torch.randn(COUNTED, tokens, CHANNELS, generator=torch.Generator().manual_seed(0))
    exact = flow.inverse(z)

    def guess(block: FlowBlock, z: Tensor) -> Tensor:
        return next(theirs for ours, theirs in zip(flow.blocks, student.blocks, strict=True) if ours is block)(z)

    rules: dict[str, Callable[[FlowBlock, Tensor], tuple[Tensor, int]]] = {
        "from z (ours)": fixed_point,
        "from zero": lambda block, z: fixed_point(block, z, start=torch.zeros_like(z)),
        "from the student's guess, its pass not counted": lambda block, z: fixed_point(block, z, start=guess(block, z)),
    }
    for memory in (2, 3, 5):
        rules[f"Anderson, {memory} iterates"] = lambda block, z, memory=memory: fixed_point(block, z, memory=memory)
    for window in (8, 32, 128):
        if window < tokens:
            rules[f"window of {window}"] = lambda block, z, window=window: fixed_point(block, z, window=window)
    rows = []
    for name, rule in rules.items():
        x, sweeps, began = z, [], time.perf_counter()
        with torch.no_grad():
            for block in reversed(flow.blocks):
                x, count = rule(block, x)
                sweeps.append(count)
        seconds = time.perf_counter() - began
        error = float((x - exact).abs().max())
        rows.append({"rule": name, "sweeps": sweeps[::-1], "sum": sum(sweeps), "error": error, "seconds": seconds})
        print(
            f"N = {tokens}, {name}: {sweeps[::-1]} = {sum(sweeps)} sweeps, error {error:.1e}, {seconds:.2f} s",
            flush=True,
        )
    _, report = inverse_jacobi(flow, z, tolerance=TOLERANCE)
    assert report.sweeps == rows[0]["sweeps"], "the package's rule differs from the first one here"
    return rows


# -- speed -------------------------------------------------------------------------------------------------------------


def inverse_with(flow: AutoregressiveFlow, z: Tensor, *, fixed: bool) -> Tensor:
    """`flow.inverse` with fixed-shape steps or with a growing cache, whatever the device's default."""
    with mock.patch.object(flow_module, "stepper", partial(stepper, fixed=fixed)):
        return flow.inverse(z)


def speed_matrix(
    config: InverseBenchmark, flow: AutoregressiveFlow, student: OneStepStudent, device: torch.device
) -> list[dict]:
    """Seconds of each method at each batch size, in interleaved rounds."""
    baseline = "sequential"
    methods: dict[str, Callable[[Tensor], Tensor]] = {
        baseline: partial(inverse_with, flow, fixed=False),
        "jacobi": lambda z: inverse_jacobi(flow, z, tolerance=TOLERANCE)[0],
        "student": student,
    }
    if device.type == "cuda":
        methods["sequential, recorded"] = partial(inverse_with, flow, fixed=True)
    if config.tarflow:
        side = round(flow.tokens**0.5) * PATCH_SIZE
        public = public_code(config.tarflow).Model(3, side, PATCH_SIZE, WIDTH, BLOCKS, LAYERS)
        methods["public TARFlow"] = public.to(device).eval().reverse
    rows = []
    for batch in config.batches or ((1, 16, 128) if device.type == "cuda" else (1, 16)):
        z = torch.randn(batch, flow.tokens, CHANNELS, generator=torch.Generator().manual_seed(1)).to(device)
        with torch.no_grad():
            calls = {name: partial(method, z) for name, method in methods.items()}
            times = timed_in_turns(calls, config.rounds, device)
        for name, seconds in times.items():
            ratio, median = speedup(times[baseline], seconds), statistics.median(seconds)
            rows.append(
                {
                    "method": name,
                    "batch": batch,
                    "seconds": median,
                    "images_per_second": batch / median,
                    "speedup_over_sequential": ratio,
                }
            )
            print(
                f"batch {batch:4d}  {name:22s} {median:8.4f} s  {batch / median:8.1f} images/s  "
                f"{ratio['median']:6.2f} x sequential ({ratio['min']:.2f} to {ratio['max']:.2f})",
                flush=True,
            )
    return rows


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.inverses", InverseBenchmark(), "Compare the inverses of the flow.", argv)
    torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "tarflow"}
    record = {**provenance(device), "settings": settings, "tolerance": TOLERANCE, "sweeps": {}}
    for tokens in config.tokens:
        flow = trained_flow(tokens, config.steps)
        student = trained_student(flow, config.steps)
        record["sweeps"][str(tokens)] = count_sweeps(flow, student)
    record["matrix"] = {
        "tokens": config.tokens[-1],
        "rows": speed_matrix(config, flow.to(device), student.to(device), device),
    }
    name = "inverses.json" if device.type == "cpu" else "inverses_cuda.json"
    write_json(ROOT / "results" / name, record)


if __name__ == "__main__":
    cli.run(main)
