"""CPU threads, as many as pay: measured at the start, and again when the work slows down and from time to time.

PyTorch takes one thread for every core. Threads of one process wait for one another by spinning, so one core that
another program uses holds up all of them: with busy neighbours, two threads on two cores may be many times slower than
one. Work too small to be shared gains nothing from a second thread. Neither can be told in advance, so we time a piece
of the work itself, one layer of the model: long enough for other programs to get their turn, short enough to be cheap
where a whole step would take a minute.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from farmer_ref.model.transformer import TransformerLayer, transformer_layers
from farmer_ref.support import parallel

MOST = torch.get_num_threads()  # PyTorch's own number, or what the user has set before this import
ROUNDS = 5  # measurements of each number of threads
LEAST_SECONDS = 0.02  # of a measurement
WORTH = 0.95  # more threads are taken where they need less than this share of the time
HOPELESS = 1.5  # a number of threads this many times slower than the best so far is not timed again
SLOW = 1.5  # a unit of work this many times longer than the shortest since the choice has lost time
FIRST_WAIT, LONGEST_WAIT = 5.0, 80.0  # seconds until the next choice: doubled while it stays the same
LOST = 0.1  # share of that wait which, lost by slow units, brings the next choice forward

_chosen = MOST  # the number that this module has set last
_said: int | None = None  # and the one that it has told the user


def choose_threads(
    model: nn.Module, *, images: int, tokens: int, device: torch.device, wanted: int | None
) -> ThreadChoice:
    """Set the number of CPU threads: `wanted`, the user's own, or the fastest for `tokens` tokens of `images` images.

    Nothing is measured on a GPU, under torchrun, with OMP_NUM_THREADS, or after a `torch.set_num_threads` of the
    user's.
    """
    global _chosen
    set_by_user = bool(os.environ.get("OMP_NUM_THREADS")) or torch.get_num_threads() not in (MOST, _chosen)
    if wanted is not None:
        _chosen = wanted
        torch.set_num_threads(wanted)
    elif MOST > 1 and device.type == "cpu" and parallel.world_size() == 1 and not set_by_user:
        return ThreadChoice(partial(run_layer, transformer_layers(model)[0], images, tokens))
    return ThreadChoice(None)


@torch.no_grad()
def run_layer(layer: TransformerLayer, images: int, tokens: int) -> None:
    """One pass of a layer, as it is without `compile`, over blank input: the work that is timed."""
    weight = layer.attention_in.weight
    layer.forward(weight.new_zeros(images, tokens, weight.shape[1]))


class ThreadChoice:
    """The number of threads for some work, kept up to date by `check`; None: a number that stays as it is."""

    def __init__(self, work: Callable[[], object] | None):
        self.work, self._wait = work, FIRST_WAIT
        if work is not None:
            self._choose(work)

    def _choose(self, work: Callable[[], object]) -> None:
        """Take the number of threads that is fastest now, and say it if it is new."""
        global _chosen, _said
        before, _chosen = torch.get_num_threads(), fastest(work, candidates())
        torch.set_num_threads(_chosen)
        self._wait = min(2 * self._wait, LONGEST_WAIT) if _chosen == before else FIRST_WAIT
        self._began, self._least, self._lost = time.perf_counter(), float("inf"), 0.0
        if _chosen != _said:
            _said = _chosen
            threads = "1 thread" if _chosen == 1 else f"{_chosen} threads"
            tqdm.write(f"note: {threads}, the fastest now (--threads N: always N)", file=sys.stderr)

    def check(self, seconds: float) -> None:
        """Choose again if units of work, the last of which took `seconds`, have lost time, or if it is time to."""
        if self.work is None:
            return
        self._least = min(self._least, seconds)
        if torch.get_num_threads() > 1 and seconds > SLOW * self._least:
            self._lost += seconds - self._least
        if time.perf_counter() - self._began > self._wait or self._lost > LOST * self._wait:
            self._choose(self.work)


def candidates() -> list[int]:
    """The numbers of threads to compare: 1, 2, 4, ... and all."""
    return [*(2**power for power in range((MOST - 1).bit_length())), MOST]


def fastest(work: Callable[[], object], numbers: list[int]) -> int:
    """The number of threads with which `work` takes the least time; a smaller one if it takes little more."""
    times: dict[int, list[float]] = {number: [] for number in numbers}
    for number in numbers:  # the first time with so many threads takes longer
        torch.set_num_threads(number)
        work()
    for _ in range(ROUNDS):
        for number in list(times):  # in turn, so that what comes and goes affects them all
            torch.set_num_threads(number)
            times[number].append(seconds_of(work))
        least = min(min(seconds) for seconds in times.values())
        times = {number: seconds for number, seconds in times.items() if min(seconds) < HOPELESS * least}
    medians = {number: statistics.median(seconds) for number, seconds in times.items()}
    best = min(medians.values())
    return min(number for number, seconds in medians.items() if WORTH * seconds <= best)


def seconds_of(work: Callable[[], object]) -> float:
    """The mean seconds of `work`, called again and again for a while."""
    began, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began < LEAST_SECONDS:
        work()
        calls += 1
    return (time.perf_counter() - began) / calls
