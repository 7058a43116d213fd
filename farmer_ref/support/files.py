"""Models on disk: safetensors and JSON, replaced by one rename; nothing is ever unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from farmer_ref.support import hub
from farmer_ref.support.errors import InputError, require

PRETRAINED = Path(__file__).parent.parent / "weights"  # weights that ship with the package


def pretrained_folder(name: str | Path, **options: Unpack[hub.DownloadOptions]) -> Path:
    """The folder with a model's config.json and model.safetensors: one on this machine, a shipped one, or the Hub's.

    What is here comes first: only for an owner/name that is no folder here is the network asked (`hub.download`).
    """
    known = hub.DownloadOptions.__annotations__
    for option in options:
        require(option in known, "option of from_pretrained", option, ", ".join(known))
    shipped = sorted(path.name for path in PRETRAINED.glob("*/"))
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


def read_config(folder: Path) -> dict:
    """config.json of a run folder."""
    try:
        values = json.loads((folder / "config.json").read_text())
        if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
            raise ValueError("it describes no FARMER model")
        return values
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / 'config.json'} cannot be read ({error}); allowed: the file of a run folder"
        ) from None


def write_config(folder: Path, values: dict) -> None:
    """config.json of a run folder, replaced by one rename."""
    write_json(folder / "config.json", values)


def write_json(path: Path, values: dict) -> None:
    """A JSON file, replaced by one rename."""
    replace_file(path, lambda temporary: temporary.write_text(json.dumps(values, indent=2) + "\n"))


def write_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, replaced by one rename; `metadata` goes into its header."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    replace_file(path, lambda temporary: save_file(plain, temporary, metadata))


def read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file; a missing or damaged one raises `InputError` with its name."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); allowed: a whole safetensors file") from None


def read_metadata(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); allowed: a whole safetensors file") from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model; weights that do not fit raise `InputError`."""
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        raise InputError(f"{path} does not fit its config.json ({str(error).splitlines()[-1].strip()})") from None


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
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{path} cannot be written ({error}); allowed: a place with room. What was there before is whole"
        ) from None


def flush(path: Path) -> None:
    """Force a file or a folder onto the disk. Windows, which cannot open a folder, keeps renames safe by itself."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def output_file(name: str) -> Path:
    """The path of a file to be written, its folder made; asked for before the work whose result it will hold."""
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out is {name!r}, whose folder cannot be made ({error}); allowed: a file to write") from None
    if path.is_dir():
        raise InputError(f"out is {name!r}, which is a folder; allowed: a file to write")
    return path
