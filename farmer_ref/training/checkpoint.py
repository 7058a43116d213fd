"""Checkpoints of a run: `checkpoints/step-N/`, tensors as safetensors and the loop's state as JSON, never a pickle.

`torch.distributed.checkpoint` writes the tensors, one file per process with its shards; any number of processes can
read them. A checkpoint is written under a temporary name, flushed, and renamed: killing the processes at any instant
leaves the last complete one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import NonNegativeFloat
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from farmer_ref.support import parallel
from farmer_ref.support.errors import InputError, not_finite
from farmer_ref.support.files import flush, read_json, replace_file
from farmer_ref.support.settings import Whole, settings_class

KEEP_CHECKPOINTS = 2
STATE = "state.json"


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


@settings_class
class State:
    """What a checkpoint holds beside tensors."""

    step: Whole
    """Steps done."""
    seconds: NonNegativeFloat
    """Time they took."""
    skipped: Whole
    """Steps whose gradient was not finite."""
    skipped_in_a_row: Whole
    """How many of the latest steps were skipped without a break."""
    files: Whole
    """Files of tensors."""
    checksums: dict[str, str] = field(default_factory=dict)
    """The SHA-256 of each of them, by its name."""


def last_state(run: Path) -> State:
    """The state at the newest checkpoint of a run."""
    return read_state(checkpoints(run)[-1])


def read_state(folder: Path) -> State:
    """The state of a checkpoint. Raises `InputError` if it is damaged."""
    try:
        return read_json(folder / STATE, State)
    except InputError as error:
        raise InputError(f"{error}; or delete {folder} to resume from the checkpoint before it") from None


def save_checkpoint(run: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write checkpoints/step-N atomically; keep the newest two. All processes call it, each with its shards.

    Values that are not finite are never written: `InputError`.
    """
    if found := _not_finite_anywhere(tensors):
        raise InputError(
            f"{found} at step {state['step']}; allowed: finite ones, from a smaller learning_rate, say. Checkpoints "
            "before it are intact"
        )
    folder, name = run / "checkpoints", f"step-{state['step']}"
    temporary = folder / f".{name}.tmp"

    def make_room() -> None:
        for leftover in folder.glob(".step-*"):  # left by a kill
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)

    def write_tensors(alone: bool) -> None:
        dcp.save(
            dict(tensors), storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True), no_dist=alone
        )

    def complete() -> None:
        complete_state = State(**state, files=len(checksums), checksums=checksums)
        replace_file(temporary / STATE, lambda path: path.write_text(json.dumps(asdict(complete_state)) + "\n"))
        temporary.rename(folder / name)
        flush(folder)
        for old in checkpoints(run)[:-KEEP_CHECKPOINTS]:
            # Renamed first, so that no folder with a checkpoint's name is ever incomplete.
            shutil.rmtree(old.rename(folder / f".{old.name}.old"))

    try:
        parallel.on_rank_zero(make_room)
        _together(write_tensors)
        checksums = _checksums(temporary)
        parallel.on_rank_zero(complete)
    except (OSError, InputError, dcp.CheckpointException) as error:
        if parallel.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)  # it may have filled the disk
        raise InputError(
            f"out is {str(run)!r}, where checkpoint {name} cannot be written ({_reason(error)}); allowed: a folder "
            "with free space. Earlier checkpoints are intact"
        ) from None


def load_checkpoint(folder: Path, tensors: dict[str, Tensor]) -> State:
    """Load the tensors of a checkpoint in place and return its state. Raises `InputError` naming a damaged file.

    Each process reads the shards it needs, however many processes wrote the checkpoint.
    """
    state = read_state(folder)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != state.files:
        raise InputError(f"{folder} holds {len(files)} of {state.files} safetensors files; {_advice(folder)}")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read ({error}); {_advice(folder)}") from None
    for name, checksum in _checksums(folder).items():
        if state.checksums and state.checksums.get(name) != checksum:
            raise InputError(f"{folder / name} has changed since it was written (its checksum); {_advice(folder)}")
    try:
        _together(lambda alone: dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone))
    except dcp.CheckpointException as error:
        raise InputError(f"{folder} does not fit the run ({_reason(error)}); {_advice(folder)}") from None
    if found := _not_finite_anywhere(tensors):
        raise InputError(f"{folder}: {found}; {_advice(folder)}")
    return state


def _checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each safetensors file of a folder, by name; the processes share the work."""
    files, found = sorted(folder.glob("*.safetensors")), {}
    for path in files[parallel.rank() :: parallel.world_size()]:
        with open(path, "rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {name: checksum for part in parallel.gather(found) for name, checksum in part.items()}


def _not_finite_anywhere(tensors: dict[str, Tensor]) -> str | None:
    """What `not_finite` finds in the shards of any process, the same on all of them."""
    own = not_finite({name: parallel.local_tensor(tensor) for name, tensor in tensors.items()})
    return next(filter(None, parallel.gather(own)), None)


def _together(work: Callable[[bool], None]) -> None:
    """Call a function of torch.distributed.checkpoint, with the other processes or alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        work(not dist.is_initialized())


def _reason(error: BaseException) -> BaseException | str:
    """The first failure, from the first process that reports one."""
    if not isinstance(error, dcp.CheckpointException):
        return error
    first, _ = next(iter(error.failures.values()))
    return str(first).splitlines()[0]


def _advice(folder: Path) -> str:
    return f"allowed: intact files; delete {folder} to resume from the checkpoint before it"
