"""FARMER live in the page: the weights of a run as a script, recorded states, and one page that works alone.

`python -m book.live --run digits --out live` writes live/live.html, a single file, and prints what its weights lost. The
book's build writes the same parts beside its pages. The scripts themselves are in book/_static/live/.

Legend: B batch, N tokens, D channels of a token, I of them informative, n flow blocks, L grey levels.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import html
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from book.equations import HERE, REPOSITORY
from farmer_ref.data.sets import load_split
from farmer_ref.model.farmer import Farmer
from farmer_ref.model.student import OneStepStudent
from farmer_ref.support import cli
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.files import pretrained_folder
from farmer_ref.training.runs import Run

STATIC = HERE / "_static" / "live"
Format = Literal["int8", "float32"]
MATRICES = (".weight", "positions")  # names that end so are packed as int8, with one scale for each row


class Loss(NamedTuple):
    """What packing the weights changed on the test images: bits/dim on average, nats of the worst image."""

    bits_per_dim: float
    worst_nats: float


# -- weights -----------------------------------------------------------------------------------------------------------


def pack(tensors: dict[str, Tensor], format: Format) -> tuple[list[list[Any]], bytes, dict[str, Tensor]]:
    """A table of (name, shape, packed?), the bytes of all tensors in its order, and the tensors as they are read back."""
    table, parts, read = [], [], {}
    for name, tensor in tensors.items():
        packed = format == "int8" and tensor.dim() == 2 and name.endswith(MATRICES)
        table.append([name, list(tensor.shape), int(packed)])
        if not packed:
            parts.append(tensor.numpy().astype("<f4").tobytes())
            read[name] = tensor
            continue
        scale = tensor.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127  # (rows,1)
        whole = (tensor / scale).round()
        parts += [scale.numpy().astype("<f4").tobytes(), whole.numpy().astype(np.int8).tobytes()]
        read[name] = whole * scale
    return table, b"".join(parts), read


def tensors_of(model: Farmer, student: OneStepStudent | None) -> dict[str, Tensor]:
    """Every tensor that farmer.js reads, float32; learned channel mixing as its matrix and that matrix's inverse."""
    found = {name: tensor.float() for name, tensor in model.state_dict().items() if name != "patchify.fitted"}
    if student is not None:
        state = student.state_dict().items()
        found |= {f"student.{name}": tensor.float() for name, tensor in state if name != "teacher_fingerprint"}
    for prefix, module in (("", model), ("student.", student)):
        for name, block in [] if module is None else module.named_modules():
            mixing = getattr(block, "mixing", None)
            if mixing is None:
                continue
            place = f"{prefix}{name}.mixing"
            matrix = torch.linalg.multi_dot(mixing._factors(torch.float64)).detach()
            for part in ("permutation", "sign", "lower", "upper"):
                del found[f"{place}.{part}"]
            found[f"{place}.matrix"], found[f"{place}.inverse"] = matrix.float(), matrix.inverse().float()
    return found


def load(run: str) -> tuple[Farmer, OneStepStudent | None]:
    """The model of a run folder or a shipped name, and its student if it has one."""
    model = Farmer.from_pretrained(run)
    config = model.config
    require(config.flow == "autoregressive", "flow", config.flow, "autoregressive")
    require(config.dequantisation == "uniform", "dequantisation", config.dequantisation, "uniform")
    require(config.num_classes > 1, "num_classes", config.num_classes, "2 or more")
    student = (pretrained_folder(run) / "student.safetensors").is_file()
    return model, OneStepStudent.from_pretrained(run, model.flow) if student else None


def packed_model(run: str) -> Farmer:
    """The model with the weights that the page has."""
    model, _ = load(run)
    _, _, read = pack(tensors_of(model, None), "int8")
    model.load_state_dict({name: read.get(name, tensor) for name, tensor in model.state_dict().items()})
    return model


def weights_script(model: Farmer, student: OneStepStudent | None, format: Format = "int8") -> str:
    """A classic script that sets FARMER_WEIGHTS: a page from a file may load it, and may not load anything else."""
    table, data, _ = pack(tensors_of(model, student), format)
    found = {
        "config": dataclasses.asdict(model.config),
        "order": model.prior.channel_order.tolist(),
        "reversed": model.config.prior_reversed,
        "form": student.form if student else None,
        "kernel": base64.b64encode((STATIC / "kernel.wasm").read_bytes()).decode(),
        "tensors": table,
        "data": base64.b64encode(data).decode(),
    }
    return f"globalThis.FARMER_WEIGHTS = {json.dumps(found, separators=(',', ':'))};\n"
