"""Several processes as one (torchrun starts them): who they are, what each does of a step, how a model is spread.

In a single process all of it works, and does nothing. Several machines share a file system: process 0 makes the folders
of runs, checkpoints and samples, downloads and caches, and the others read them and write into them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from farmer_ref.support.errors import InputError, require


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA when there is one; anything else is torch's own name of a device that works here."""
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
    """The device of this process. Where torchrun has started it, it also joins the other processes."""
    if "WORLD_SIZE" not in os.environ:
        return resolve_device(name)
    require("LOCAL_RANK" in os.environ, "LOCAL_RANK", None, "a number, which torchrun sets together with WORLD_SIZE")
    require(not name.startswith("cuda:"), "device", name, "auto, cpu, cuda: torchrun gives each process its own GPU")
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if count and name in ("auto", "cuda"):
        require(number < count, "--nproc-per-node", f"{number + 1} or more", f"up to {count}, one process for each GPU")
        torch.cuda.set_device(number)  # before anything makes a context on GPU 0
        name = f"cuda:{number}"
    device = resolve_device(name)
    if not dist.is_initialized():  # gloo carries what is said from CPU to CPU, without stopping the GPUs
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process; process 0 is the one that writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def print_once(text: str) -> None:
    """Print it once."""
    if rank() == 0:
        print(text)


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Process 0 runs the body before the others do: what it downloads is there for them. They then run it together, so
    it must write nothing that is there already."""
    if rank() > 0:
        gather(None)
    try:
        yield
    finally:
        if rank() == 0:
            gather(None)


def on_rank_zero(work: Callable[[], Any]) -> Any:
    """Process 0 does the work, and all of them get its result, or the `OSError` or `InputError` in it.

    For what writes files: several processes would take one another's temporary file away.
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
    """The rows of a batch that are this process's."""
    share = batch_size // world_size()
    return range(rank() * share, (rank() + 1) * share)


def mean_over_processes(values: Sequence[float]) -> list[float]:
    """The mean of each number over the processes, the same on all of them."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return (total / world_size()).tolist()


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order, on each of them."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def gather_interleaved(mine: Sequence[Any]) -> list[Any]:
    """All results of work that the processes took in turn (process r items r, r + P, ...), in the items' order."""
    columns = gather(list(mine))
    return [column[row] for row in range(len(columns[0])) for column in columns if row < len(column)]


def broadcast_from_rank_zero(tensors: Sequence[Tensor]) -> None:
    """Overwrite the tensors with those of process 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def distribute(
    model: nn.Module, layers: Sequence[nn.Module], *, how: str, precision: str, device: torch.device
) -> nn.Module:
    """The module to call in place of `model`, which computes its gradients over all processes.

    "ddp": every process holds the whole model, and gradients are averaged. "fsdp": every process holds a shard of each
    weight, of its gradient and of the optimiser's state; a layer's weights are gathered when its turn comes. `layers`
    are the transformer layers, which are sharded one by one. With bfloat16 only these are gathered in it: the
    projections into and out of them and the heads stay in float32, as do gradient sums and the residual stream.
    """
    if world_size() == 1:
        return model
    if how == "ddp":
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    # Imported here: they take half a second, and one process does without.
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
    """Whether the backward pass inside averages gradients over the processes now, or a later one for both.

    FSDP always does: to wait would be to keep whole gradients.
    """
    waiting = not now and isinstance(distributed_model, DistributedDataParallel)
    with distributed_model.no_sync() if waiting else contextlib.nullcontext():
        yield


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds a part of this tensor only (a `DTensor`)."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process holds a part; all of them ask for it together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor
