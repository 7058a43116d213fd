"""The order of training: what happens to sample k of step t depends on (seed, t, k) alone.

Not on the rank, on the number of processes, on how a batch is accumulated, or on where a run was resumed.
"""

from __future__ import annotations

from farmer_ref.model.tokens import Dequantiser
from farmer_ref.data.folders import FolderSet
from farmer_ref.data.sets import ImageSet
from farmer_ref.support.errors import InputError
from farmer_ref.model.prior import NULL_LABEL


import atexit
import hashlib
import multiprocessing
import signal
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler



def random_seed(*key: object) -> int:
    """A seed for `torch.Generator` that is a function of the key alone, such as (seed, step, k)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


class Batch(NamedTuple):
    """Training images of one step, or those of one process: bytes (B,C,H,W) and labels (B,)."""

    step: int
    values: Tensor
    labels: Tensor
    first: int = 0
    """The place in the step's whole batch at which these images begin."""

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in `count` equal parts."""
        size = len(self.labels) // count
        for start in range(0, len(self.labels), size):
            rows = slice(start, start + size)
            yield Batch(self.step, self.values[rows], self.labels[rows], self.first + start)


class _StepOrder(Sampler):
    """For each step from `start` on, its samples k in `rows` as (step, k, index); every epoch has its own shuffle."""

    def __init__(self, size: int, batch_size: int, seed: int, start: int, rows: range):
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
    """Reads the samples of a step, mirrored at random where `flip`."""

    def __init__(self, data: ImageSet | FolderSet, seed: int, flip: bool):
        self.data, self.seed, self.flip = data, seed, flip

    def __getitems__(self, samples: list[tuple[int, int, int]]) -> Batch | InputError:
        values, labels = [], []
        try:
            for step, k, index in samples:
                image, label = self.data[index]
                mirrored = self.flip and random_seed(self.seed, "flip", step, k) % 2
                values.append(image.flip(-1) if mirrored else image)
                labels.append(label)
        except InputError as error:  # raised again by the main process, where it stays one line
            return error
        step, first, _ = samples[0]
        return Batch(step, torch.stack(values), torch.tensor(labels), first)


def _as_read(batch: Batch | InputError) -> Batch | InputError:
    """The loader's collate function, by name so that workers can start anywhere: a batch is whole already."""
    return batch


def _leave_signals_to_the_parent(_: int) -> None:
    """A worker ends when the process that it reads for does: a signal to all must not cut off the last checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """End the workers at exit, where SIGTERM, which they ignore, is all that multiprocessing would try."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def training_batches(
    data: ImageSet | FolderSet,
    batch_size: int,
    seed: int,
    start: int,
    flip: bool = False,
    workers: int = 0,
    rows: range | None = None,
) -> Iterator[Batch]:
    """The batches of steps start, start + 1, ... without end; of each, the rows of this process (None: all)."""
    loader = DataLoader(
        _TrainingSamples(data, seed, flip),
        batch_sampler=_StepOrder(len(data), batch_size, seed, start, rows or range(batch_size)),
        collate_fn=_as_read,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_parent,
    )
    batches = iter(loader)
    if workers:  # after multiprocessing's own: what is registered last runs first
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
        del batches  # now, not when the traceback goes: it ends the workers


def training_images(
    batch: Batch,
    dequantiser: Dequantiser,
    *,
    seed: int,
    progress: float,
    label_dropout: float,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Dequantised images (B,C,H,W) and labels (B,) with some dropped.

    What is random is a function of (seed, step, sample), and of the device, whose generator draws the noise. The size
    of Gaussian noise follows `progress`, which with `max_minutes` depends on the clock.
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
