"""Seconds of calls, and of several calls side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from farmer_ref.support.record import timed


def seconds_of(work: Callable[[], object], least: float) -> float:
    """The median seconds of a call, over calls that take `least` seconds or three."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def side_by_side(calls: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every call in each round, after one round of warm-up.

    Calls alternate, so that drift in the machine's speed affects all of them, and the one that comes first changes from
    round to round.
    """
    names, times = list(calls), {name: list[float]() for name in calls}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(timed(calls[name], device))
    return {name: seconds[1:] for name, seconds in times.items()}


def speedup(reference: list[float], seconds: list[float]) -> dict[str, float]:
    """How many times as fast as the reference a call was: the median, the least and the most over the rounds."""
    ratios = sorted(theirs / ours for theirs, ours in zip(reference, seconds, strict=True))
    return {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}
