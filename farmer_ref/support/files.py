"""Models on disk: safetensors and JSON, replaced by one rename; nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from farmer_ref.support import hub
from farmer_ref.support.errors import InputError, not_finite, require
from farmer_ref.support.settings import STRICT, Whole, parse_json

CHECKSUM = "sha256"  # in the header of the safetensors files that we write
NOT_WRITTEN = (".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".pdf", ".npy")  # no names of folders, either
PRETRAINED = Path(__file__).parent.parent / "weights"  # weights that ship with the package


def pretrained_folder(name: str | Path, **options: Unpack[hub.DownloadOptions]) -> Path:
    """The folder with a model's config.json and model.safetensors: one on this machine, a shipped one, or the Hub's.

    What is here comes first: only for an owner/name that is no folder here is the network asked (`hub.download`).
    """
    known = hub.DownloadOptions.__annotations__
    for option in options:
        require(option in known, "option of from_pretrained", option, ", ".join(known))
    shipped = sorted(path.name for path in PRETRAINED.iterdir() if _holds_model(path))
    for folder in (Path(name), PRETRAINED / str(name)):
        if _holds_model(folder):
            revision = options.get("revision")
            require(not revision, "revision", revision, f"none, as {name} is on this machine")
            return folder
    if hub.is_repository(str(name)) and _holds_model(folder := hub.download(str(name), **options)):
        return folder
    raise InputError(
        f"model is {str(name)!r}, which holds no config.json with model.safetensors; "
        f"allowed: a run folder, or one of {', '.join(shipped)}, or a repository of the Hugging Face Hub (owner/name)"
    )


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def read_json(path: Path, kind: Any, *, known_as: str = "") -> Any:
    """A JSON file as a value of the type `kind`; a missing or damaged one raises `InputError` with its name."""
    try:
        return parse_json(kind, path.read_bytes(), known_as=known_as)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); allowed: a whole JSON file") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


class Logged(BaseModel):
    """A line of metrics.jsonl: a step, and numbers by their names; null for those that were not finite."""

    model_config = STRICT | ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]

    step: Whole


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; without the last one where a kill cut it off."""
    path = run / "metrics.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); allowed: the log of a run") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(parse_json(Logged, line).model_dump())
        except InputError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number}: {error}") from None
    return records


def write_config(folder: Path, values: dict) -> None:
    """config.json of a run folder, replaced by one rename."""
    write_json(folder / "config.json", values)


def write_json(path: Path, values: dict) -> None:
    """A JSON file, replaced by one rename. Raises `InputError` for a number that JSON cannot express."""
    try:
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    except ValueError:
        raise InputError(f"a number for {path} is not finite; allowed: finite numbers") from None
    replace_file(path, lambda temporary: temporary.write_text(text))


def write_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, replaced by one rename; `metadata` and a checksum of all of it go into its header."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    header = {**(metadata or {}), CHECKSUM: checksum(plain, metadata or {})}
    replace_file(path, lambda temporary: save_file(plain, temporary, header))


def read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file. One that is missing or damaged raises `InputError` with its name.

    So do values that are not finite, and any change since `write_weights`, whose checksum a copy keeps: it is in the
    file. Files that others wrote need none.
    """
    try:
        weights, metadata = load_file(path), read_metadata(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); allowed: a whole safetensors file") from None
    noted = metadata.pop(CHECKSUM, None)
    if noted is not None and noted != checksum(weights, metadata):
        raise InputError(f"{path} has changed since it was written (its checksum); allowed: an intact copy")
    if found := not_finite(weights):
        raise InputError(f"{path}: {found}; allowed: finite numbers, as training writes them")
    return weights


def checksum(weights: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """The SHA-256 of tensors with their names, types and shapes, and of what the header says beside them."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_metadata(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); allowed: a whole safetensors file") from None


def load_weights(model: nn.Module, path: Path, *, part: str = "") -> None:
    """Load a safetensors file, or the weights in it whose names begin with `part`, into a model.

    Weights that do not fit raise `InputError`. A model on the meta device gets its weights from the file itself.
    """
    _fill(model, read_weights(path), path, part)


def _fill(model: nn.Module, weights: dict[str, Tensor], path: Path, part: str) -> None:
    weights = {name.removeprefix(part): w for name, w in weights.items() if name.startswith(part)}
    try:
        model.load_state_dict(weights, assign=any(p.is_meta for p in model.parameters()))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path} does not fit its config.json ({reason}); allowed: both of one model") from None


def build(new: Callable[[], nn.Module], path: Path, *, numbers: int, part: str = "") -> Any:
    """The model that `new` makes, with the weights of a safetensors file (or the `part` of them, see `load_weights`).

    Sizes are compared before memory is taken for them, as config.json may describe another model: `InputError`. It asks
    for at least so many `numbers`.
    """
    weights = read_weights(path)
    held = sum(weight.numel() for weight in weights.values())
    if numbers > held:
        raise InputError(
            f"{path.parent / 'config.json'} asks for {numbers:,} numbers or more, and {path.name} holds {held:,}; "
            "allowed: both of one model"
        )
    try:
        with torch.device("meta"):
            outline = new()
    except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as error:  # sizes beyond 64 bits
        config, reason = path.parent / "config.json", str(error).splitlines()[0]
        raise InputError(f"{config} is of impossible sizes ({reason}); allowed: those of {path}") from None
    _fill(outline, weights, path, part)
    with torch.inference_mode(False):  # else gradients through the model would be refused for good
        model = new()
        _fill(model, weights, path, part)
    return model


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, flush to the disk, then rename: at any instant the old file or the new one is whole.

    Raises `InputError` where the disk is full, say; the old file is then still there, and what was begun is not.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be written ({error}); allowed: a place that can be written, with free space. "
            "What was there before is whole"
        ) from None
    finally:  # whatever happened: Ctrl-C, too
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Force a file or a folder onto the disk. Windows, which cannot open a folder, keeps renames safe by itself."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def output_file(name: str, *, picture: bool = False) -> Path:
    """The path of a file to be written, its folder made; asked for before the work whose result it will hold.

    A `picture` is a PNG file, and its name has to say so.
    """
    path = Path(name)
    require(not picture or path.suffix.lower() == ".png", "out", name, "a name that ends in .png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out is {name!r}, whose folder cannot be made ({error}); allowed: a file to write") from None
    if path.is_dir():
        raise InputError(f"out is {name!r}, which is a folder; allowed: a file to write")
    require(os.access(path.parent, os.W_OK), "out", name, "a file in a folder that can be written")
    return path
