"""Distributed execution under torchrun: ranks, collectives, and models trained by several processes.

In a single process everything works, and the collectives do nothing. Several machines share a file system: rank 0 makes
the folders of runs, checkpoints and samples, downloads and caches; the others read these and write into them.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from farmer_ref.support.errors import InputError, require

LONGEST_WAIT = datetime.timedelta(hours=2)  # for rank 0, which computes FID's figures alone: half an hour on one thread


def resolve_device(name: str) -> torch.device:
    """The torch device of this name; `auto` is CUDA where available. Raises `InputError` if it does not work here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device is {name!r}, which does not work here ({reason}); allowed: auto, cpu, cuda") from None
    return device


def join(name: str) -> torch.device:
    """The device of this process. Under torchrun, also joins the process group."""
    if "WORLD_SIZE" not in os.environ:
        return resolve_device(name)
    require("LOCAL_RANK" in os.environ, "LOCAL_RANK", None, "a number, which torchrun sets together with WORLD_SIZE")
    require(not name.startswith("cuda:"), "device", name, "auto, cpu, cuda: torchrun gives each process its own GPU")
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if count and name in ("auto", "cuda"):
        require(number < count, "--nproc-per-node", f"{number + 1} or more", f"up to {count}, one process for each GPU")
        torch.cuda.set_device(number)  # before anything creates a context on GPU 0
        name = f"cuda:{number}"
    device = resolve_device(name)
    if not dist.is_initialized():  # gloo exchanges CPU objects without synchronising the GPUs
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=LONGEST_WAIT)
    return device


def leave() -> None:
    """Leave the process group, if any: on GPUs, all processes together."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The rank of this process; rank 0 is the one that writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def print_once(text: str) -> None:
    """Print on rank 0 only."""
    if rank() == 0:
        print(text)


_noted: set[str] = set()


def note_once(text: str) -> None:
    """Print a line that the user should know of on standard error: on rank 0 only, and the same line once."""
    if rank() == 0 and text not in _noted:
        _noted.add(text)
        print(f"note: {text}", file=sys.stderr)


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Rank 0 runs the body first, so that the other ranks find what it downloads; then these run it together.

    The body must not write what exists already.
    """
    if rank() > 0:
        gather(None)
    try:
        yield
    finally:
        if rank() == 0:
            gather(None)


def on_rank_zero(work: Callable[[], Any]) -> Any:
    """Run `work` on rank 0; every rank returns its result, or raises its `OSError` or `InputError`.

    Meant for writing files: several processes would remove one another's temporary files.
    """
    result, problem = None, None
    if rank() == 0:
        try:
            result = work()
        except (OSError, InputError) as error:
            problem = error
    result, problem = gather((result, problem))[0]
    if problem is not None:
        raise problem
    return result


def rows_of_process(batch_size: int) -> range:
    """The rows of a batch that belong to this process."""
    share = batch_size // world_size()
    return range(rank() * share, (rank() + 1) * share)


def mean_over_processes(values: Sequence[float]) -> list[float]:
    """The mean of each number over the processes, on every rank."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return (total / world_size()).tolist()


def gather(value: Any) -> list[Any]:
    """The values of all processes in rank order, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def gather_interleaved(mine: Sequence[Any]) -> list[Any]:
    """Round-robin results (rank r has items r, r + P, ...) put back into the items' order, on every rank."""
    columns = gather(list(mine))
    return [column[row] for row in range(len(columns[0])) for column in columns if row < len(column)]


def broadcast_from_rank_zero(tensors: Sequence[Tensor]) -> None:
    """Overwrite the tensors with those of rank 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def distribute(
    model: nn.Module, layers: Sequence[nn.Module], *, how: str, precision: str, device: torch.device
) -> nn.Module:
    """The module to call in place of `model`, whose gradients are computed over all processes.

    "ddp": every process holds the whole model, and gradients are averaged. "fsdp": every process holds a shard of each
    weight, its gradient and its optimiser state; a layer's weights are gathered when they are needed. `layers` are the
    transformer layers, which are sharded one by one. With bfloat16 only these are gathered in that precision: the
    projections into and out of them and the heads stay in float32, as do gradient sums and the residual stream.
    """
    if world_size() == 1:
        return model
    if how == "ddp":
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    # Imported here, since it takes half a second that a single process need not spend.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    policy = MixedPrecisionPolicy()
    if precision == "bfloat16":
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh)


@contextlib.contextmanager
def gradients_averaged(distributed_model: nn.Module, now: bool) -> Iterator[None]:
    """Average the gradients of the backward pass inside over the processes if `now`, or leave it to a later pass.

    FSDP always averages: deferring it would mean keeping unsharded gradients.
    """
    waiting = not now and isinstance(distributed_model, DistributedDataParallel)
    with distributed_model.no_sync() if waiting else contextlib.nullcontext():
        yield


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a `DTensor`, of which this process holds a shard."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor; all processes must call it together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor
