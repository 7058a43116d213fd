"""Seconds of a call, and how many times as fast as another one it was."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds_of(work: Callable[[], object], least: float) -> float:
    """The median seconds of a call, over calls that take `least` seconds or three."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def speedup(reference: list[float], seconds: list[float]) -> dict[str, float]:
    """How many times as fast as the reference a call was: the median, the least and the most over the rounds."""
    ratios = sorted(theirs / ours for theirs, ours in zip(reference, seconds, strict=True))
    return {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}
