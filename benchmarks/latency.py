"""Where the time of a sample and of a likelihood goes: `python -m benchmarks.latency`. Writes results/latency.json.

The digits model and that of 28x28 pixels, by batches of 1, 16 and 100 images on one thread: milliseconds an image of
`Farmer.sample` (prior and inverse flow apart), without and with guidance, and of the log-likelihood that `evaluate`
computes. PyTorch's profiler then says how many operators a batch takes and what share of the time is spent in matrix
products, in attention, in other operators, and between them: in Python. `--compiled` adds one image with the step of
the transformers compiled by `torch.compile`, which we tried and did not take.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import seconds_of
from farmer_ref import Farmer, Guidance
from farmer_ref.model.stepper import GrowingStepper
from farmer_ref.support import cli
from farmer_ref.support.files import write_json
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import settings_class

PRODUCTS = ("mm", "linear", "Product")  # in the names of operators: addmm, bmm, baddbmm, mkldnn::_linear_pointwise
KINDS = ("products", "attention", "other operators", "between operators")


@settings_class
class LatencyBenchmark:
    """The measurements."""

    models: tuple[str, ...] = ("digits", "mnist")
    """Shipped models."""
    batches: tuple[PositiveInt, ...] = (1, 16, 100)
    """Images of a batch."""
    seconds: PositiveFloat = 2.0
    """Each piece of work is repeated for so long, three times at least, and the median taken."""
    compiled: bool = False
    """Measure one image with a compiled step, too, which takes a C++ compiler and a minute."""


def works(model: Farmer, batch: int) -> dict[str, Callable[[], object]]:
    """The pieces of work that are timed, by name."""
    labels = torch.arange(batch) % model.config.num_classes
    guided = Guidance(scale=1.0)
    z = model.prior.sample(labels, generator=torch.Generator().manual_seed(0))
    images = model.decode(z, labels)
    return {
        "sample": lambda: model.sample(labels),
        "sample, guided": lambda: model.sample(labels, guided),
        "prior": lambda: model.prior.sample(labels),
        "prior, guided": lambda: model.prior.sample(labels, guided),
        "inverse flow": lambda: model.decode(z, labels),
        "log-likelihood": lambda: model(images, labels).total,
    }


def shares(work: Callable[[], object]) -> dict[str, Any]:
    """The operators that a call runs, and the share of each kind in its time, both under the profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        began = time.perf_counter()
        work()
        whole = 1e6 * (time.perf_counter() - began)  # microseconds, as the profiler's
    spent, operators = Counter(), 0
    for event in profiled.events():
        attention = "scaled_dot_product" in event.name
        product = any(name in event.name for name in PRODUCTS)
        spent["attention" if attention else "products" if product else "other operators"] += event.self_cpu_time_total
        operators += event.cpu_parent is None
    spent["between operators"] = max(0.0, whole - sum(spent.values()))
    return {"operators": operators, "shares": {kind: spent[kind] / sum(spent.values()) for kind in KINDS}}


def compiled(name: str, seconds: float) -> list[dict[str, Any]]:
    """One image with the step of the transformers compiled: milliseconds, and the seconds of the first call."""
    as_it_is, rows = GrowingStepper._step, []
    pieces = works(Farmer.from_pretrained(name), 1)
    GrowingStepper._step = torch.compile(as_it_is, dynamic=True)
    try:
        for work in ("prior", "inverse flow"):
            torch.compiler.reset()  # it compiles for so many shapes and no more
            began = time.perf_counter()
            pieces[work]()
            first = time.perf_counter() - began
            found = 1000 * seconds_of(pieces[work], seconds)
            rows.append({"model": name, "work": work, "milliseconds": found, "seconds_of_first_call": first})
            print(f"{name}, compiled step, {work}: {found:.2f} ms an image, {first:.0f} s the first time", flush=True)
    finally:
        GrowingStepper._step = as_it_is
    return rows


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    description = "Show where the time of a sample and of a likelihood goes."
    config = cli.parse("benchmarks.latency", LatencyBenchmark(), description, argv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    made = provenance(torch.device("cpu"))
    for name in config.models:
        model = Farmer.from_pretrained(name)
        for batch in config.batches:
            for work, run in works(model, batch).items():
                whole = 1000 * seconds_of(run, config.seconds)
                rows.append({"model": name, "batch": batch, "work": work, "milliseconds": whole, **shares(run)})
                print(
                    f"{name}, {batch:3d} x {work:15s} {whole / batch:8.2f} ms an image, "
                    f"{rows[-1]['operators']:6d} operators: "
                    + ", ".join(f"{kind} {share:.0%}" for kind, share in rows[-1]["shares"].items()),
                    flush=True,
                )
    record = {**made, "rows": rows}
    if config.compiled:
        record["compiled"] = [row for name in config.models for row in compiled(name, config.seconds)]
    write_json(ROOT / "results" / "latency.json", record)


if __name__ == "__main__":
    cli.run(main)
