"""The order of training: the randomness of sample k at step t depends on (seed, t, k) alone.

It does not depend on the rank, the number of processes, gradient accumulation, or where a run was resumed.
"""

from __future__ import annotations

import atexit
import hashlib
import multiprocessing
import signal
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from farmer_ref.data.sets import ImageData
from farmer_ref.model.config import NULL_LABEL
from farmer_ref.model.tokens import Dequantiser
from farmer_ref.support.errors import InputError


def random_seed(*key: object) -> int:
    """Hash a key, such as (seed, step, k), to a seed for `torch.Generator`."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


class Batch(NamedTuple):
    """Training images of one step, or one process's share of them: bytes (B,C,H,W) and labels (B,)."""

    step: int
    values: Tensor
    labels: Tensor
    first: int = 0
    """The index of the first of these images within the step's whole batch."""

    def parts(self, count: int) -> Iterator[Batch]:
        """Split the batch into `count` equal parts."""
        size = len(self.labels) // count
        for start in range(0, len(self.labels), size):
            rows = slice(start, start + size)
            yield Batch(self.step, self.values[rows], self.labels[rows], self.first + start)


class _StepOrder(Sampler):
    """For each step from `start` on, its samples k in `rows` as (step, k, index); every epoch is shuffled anew."""

    def __init__(self, size: int, batch_size: int, *, seed: int, start: int, rows: range):
        self.size, self.batch_size, self.seed, self.start, self.rows = size, batch_size, seed, start, rows

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        step, epoch, order = self.start, -1, torch.empty(0)
        while True:
            samples = []
            for k in self.rows:
                wanted, offset = divmod(step * self.batch_size + k, self.size)
                if wanted != epoch:
                    generator = torch.Generator().manual_seed(random_seed(self.seed, "epoch", wanted))
                    epoch, order = wanted, torch.randperm(self.size, generator=generator)
                samples.append((step, k, int(order[offset])))
            yield samples
            step += 1


class _TrainingSamples(Dataset):
    """Loads the samples of a step; with `flip`, mirrors each at random."""

    def __init__(self, data: ImageData, *, seed: int, flip: bool):
        self.data, self.seed, self.flip = data, seed, flip

    def __getitems__(self, samples: list[tuple[int, int, int]]) -> Batch | InputError:
        values, labels = [], []
        try:
            for step, k, index in samples:
                image, label = self.data[index]
                mirrored = self.flip and random_seed(self.seed, "flip", step, k) % 2
                values.append(image.flip(-1) if mirrored else image)
                labels.append(label)
        except InputError as error:  # re-raised in the main process, without a worker's traceback
            return error
        step, first, _ = samples[0]
        return Batch(step, torch.stack(values), torch.tensor(labels), first)


def _unchanged(batch: Batch | InputError) -> Batch | InputError:
    """Collate function: `__getitems__` returns a batch already. Named, so that spawned workers can unpickle it."""
    return batch


def _ignore_signals(_: int) -> None:
    """Ignore signals in a worker: Ctrl-C reaches it too, and the parent may need it until the last checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """Kill the workers at exit: multiprocessing sends SIGTERM only, which they ignore."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def training_batches(
    data: ImageData,
    batch_size: int,
    *,
    seed: int,
    start: int,
    flip: bool = False,
    workers: int = 0,
    rows: range | None = None,
) -> Iterator[Batch]:
    """The batches of steps start, start + 1, ... without end, or only the given `rows` of each (one process's
    share)."""
    loader = DataLoader(
        _TrainingSamples(data, seed=seed, flip=flip),
        batch_sampler=_StepOrder(len(data), batch_size, seed=seed, start=start, rows=rows or range(batch_size)),
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_signals,
    )
    batches = iter(loader)
    if workers:  # registered after multiprocessing's own handler, so it runs before it
        atexit.register(_end_workers)
    try:
        while True:
            try:
                batch = next(batches)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise InputError(f"workers is {workers}, and one was killed ({error}); allowed: fewer, or 0") from error
            if isinstance(batch, InputError):
                raise batch
            yield batch
    finally:
        del batches  # ends the workers now, not when the traceback is freed


def training_images(
    batch: Batch,
    dequantiser: Dequantiser,
    *,
    seed: int,
    progress: float,
    label_dropout: float,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Dequantised images (B,C,H,W), and labels (B,) after label dropout.

    Each image's randomness is a function of (seed, step, k) and of the device, whose generator draws the noise. The
    standard deviation of Gaussian noise follows `progress`, which depends on the clock under `max_minutes`.
    """
    generator = torch.Generator(device)
    noise, dropped = [], []
    for k in range(batch.first, batch.first + len(batch.labels)):
        generator.manual_seed(random_seed(seed, batch.step, k))
        noise.append(dequantiser.draw(tuple(batch.values.shape[1:]), generator))
        dropped.append(random_seed(seed, "label", batch.step, k) < label_dropout * 2**63)
    labels = torch.where(torch.tensor(dropped), NULL_LABEL, batch.labels)
    values = batch.values.to(device, non_blocking=True)
    images = dequantiser(values, torch.stack(noise), dequantiser.noise_std_at(progress))
    return images, labels.to(device, non_blocking=True)
