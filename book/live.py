"""FARMER live in the page: the weights of a run as a script, recorded states, and one page that works alone.

`python -m book.live --run digits --out live` writes live/live.html, a single file, and prints what its weights lost.
The book's build writes the same parts beside its pages. The scripts themselves are in book/_static/live/.

Legend: B batch, N tokens, D channels of a token, I of them informative, n flow blocks, L grey levels.
"""

from __future__ import annotations

import argparse
import base64
import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from book.equations import HERE, REPOSITORY
from farmer_ref.data.sets import load_split
from farmer_ref.model.farmer import Farmer
from farmer_ref.model.flow import FlowBlock
from farmer_ref.model.jacobi import CONVERGED
from farmer_ref.model.student import OneStepStudent
from farmer_ref.model.tokens import nats_to_bits_per_dim
from farmer_ref.support import cli
from farmer_ref.support.errors import require
from farmer_ref.support.files import pretrained_folder
from farmer_ref.training.runs import Run

STATIC = HERE / "_static" / "live"
Format = Literal["int8", "float32"]
TOLERANCE = 1e-5  # of the sweeps, as that of `inverse_jacobi`
IMAGES = 1000  # test images for the histogram and for what packing loses
EXAMPLE, SEED = 3, 0  # the class, and the seed, of the recorded states
SCRIPTS = ("farmer.js", "live.js")  # in this order, after the recorded states
LOADED = ("recorded.js", *SCRIPTS)  # by a page of the book; weights.js follows when a widget is touched
WIDGETS = ("draw", "sample", "guidance", "race", "mask", "volume")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>FARMER, live</title>
<style>
{style}
html {{ color-scheme: light dark; }}
body {{ max-width: 62rem; margin: 0 auto; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ margin: 1.5rem 0 .25rem; font-size: 1.9rem; }}
</style>
</head>
<body>
<h1>FARMER, live</h1>
<p>A model that draws images and says exactly how probable an image is, running in this page: no server, no network.
Everything below is one file. <a href="{repository}">The code, the course and the paper, checked</a>.</p>
<main>
{widgets}
</main>
<p>The weights are stored in 8 bits. On the test images that changes bits/dim by {bits:.4f} on average, and the
log-density of the worst image by {nats:.2f} nats.</p>
{scripts}</body>
</html>
"""
MATRICES = (".weight", "positions")  # names that end so are packed as int8, with one scale for each row


class Loss(NamedTuple):
    """What packing the weights changed on the test images: bits/dim on average, nats of the worst image."""

    bits_per_dim: float
    worst_nats: float


# -- weights -----------------------------------------------------------------------------------------------------------


def pack(tensors: dict[str, Tensor], format: Format) -> tuple[list[list[Any]], bytes, dict[str, Tensor]]:
    """A table of (name, shape, packed?), the bytes of all tensors in its order, and the tensors as read back."""
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
    require(config.channels == 1, "channels", config.channels, "1")
    require(config.num_classes > 1, "num_classes", config.num_classes, "2 or more")
    student = (pretrained_folder(run) / "student.safetensors").is_file()
    return model, OneStepStudent.from_pretrained(run, model.flow) if student else None


def as_packed(model: Farmer, student: OneStepStudent | None) -> tuple[Farmer, OneStepStudent | None]:
    """Copies of the model and its student with the weights that the page has."""
    _, _, read = pack(tensors_of(model, student), "int8")
    copies = copy.deepcopy((model, student))
    for prefix, module in zip(("", "student."), copies, strict=True):
        if module is not None:
            state = {name: read.get(prefix + name, tensor) for name, tensor in module.state_dict().items()}
            module.load_state_dict(state)
    return copies


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


# -- recorded states ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def recorded(run: str) -> dict[str, Any]:
    """What the widgets show before anyone touches them, computed by PyTorch with the page's weights."""
    model, student = as_packed(*load(run))
    config = model.config
    values, labels = test_images(run, model)
    examples = [values[(labels == c).nonzero()[0, 0]] for c in range(config.num_classes)]
    best = class_log_probs(model, values).amax(1)
    counts, edges = np.histogram(best.numpy(), bins=40)
    torch.manual_seed(SEED)
    label = torch.tensor([EXAMPLE])
    z = model.prior.sample(label)
    return {
        "config": {name: getattr(config, name) for name in ("image_size", "patch_size", "levels", "num_classes")},
        "examples": [example.flatten().tolist() for example in examples],
        "example": EXAMPLE,
        "histogram": {"from": float(edges[0]), "step": float(edges[1] - edges[0]), "counts": counts.tolist()},
        "draw": drawing(model, examples[EXAMPLE][None]),
        "sample": way_to_image(model, student, z, label),
        "mask": [masked(model, examples[EXAMPLE][None], causal=causal) for causal in (True, False)],
    }


def middles(model: Farmer, values: Tensor) -> Tensor:
    """Grey levels (B,C,H,W) as images whose every pixel is the middle of its level's cell, as the page takes them."""
    return model.dequantiser(values, torch.full(values.shape, 0.5))


def class_log_probs(model: Farmer, values: Tensor) -> Tensor:
    """log p(x | c) (B,classes) at the middles of the cells."""
    images = middles(model, values)
    classes = range(model.config.num_classes)
    return torch.stack([model.log_prob(images, torch.full((len(images),), c)) for c in classes], 1)


def drawing(model: Farmer, values: Tensor) -> dict[str, Any]:
    """The figures of one image (1,C,H,W) of grey levels, as `Farmer.bayes` of farmer.js gives them."""
    posterior = torch.softmax(class_log_probs(model, values).double(), 1)[0]
    best, images = posterior.argmax()[None], middles(model, values)
    terms, (z, _) = model.likelihood_terms(images, best), model.encode(images, best)
    mixtures, shared = model.prior.mixtures(z, best)
    informative, redundant = model.prior.split(z)
    per_token = mixtures.log_prob(informative)
    if shared is not None:
        per_token = per_token + shared.unsqueeze().log_prob(redundant)
    x = model.patchify(images)
    for block in model.flow.blocks:  # the log-determinant token by token, which the package only sums
        x, logdet = (x, torch.zeros(1)) if block.mixing is None else block.mixing(x)
        x = block.flip_if_reversed(x)
        shift, log_scale = block.all_shifts_and_log_scales(x, best)
        per_token = per_token + logdet[:, None] / x.shape[1] + block.flip_if_reversed(log_scale).sum(-1)
        x = block.flip_if_reversed((x - shift) * log_scale.exp())
    bits = nats_to_bits_per_dim(terms.total, model.config.dimensions, model.config.levels)
    return {
        **{name: float(term) for name, term in terms._asdict().items()},
        "total": float(terms.total),
        "perToken": per_token[0].tolist(),
        "posterior": posterior.tolist(),
        "best": int(best),
        "bits": float(bits),
    }


def way_to_image(model: Farmer, student: OneStepStudent | None, z: Tensor, label: Tensor) -> dict[str, Any]:
    """The latents z (1,N,D) of a sample, the mixture of every token, and the three inverses, last block first."""
    informative, _ = model.prior.split(z)
    mixtures = model.prior.mixtures(z, label)[0]
    steps = []
    for i in range(z.shape[1]):
        place = z.shape[1] - 1 - i if model.prior.reverse else i
        found = {
            "drawn": informative[0, place],
            "logWeights": torch.log_softmax(mixtures.logits[0, place], -1),
            "mean": mixtures.mean[0, place].flatten(),
            "logScale": mixtures.log_scale[0, place].flatten(),
        }
        steps.append({"place": place, **{name: numbers(tensor) for name, tensor in found.items()}})

    def image(tokens: Tensor) -> list[float]:
        return numbers(model.patchify.inverse(tokens))

    levels, sweeps, x = [], [], z
    for block in reversed(model.flow.blocks):
        sweeps.append([image(guess) for guess in jacobi_sweeps(block, x, label)])
        x = block.inverse(x, label)
        levels.append(image(x))
    return {
        "label": int(label),
        "steps": steps,
        "latents": image(z),
        "levels": levels,
        "sweeps": sweeps,
        "student": [image(level) for level in student.path(z, label)] if student else [],
        "image": levels[-1],
    }


def jacobi_sweeps(block: FlowBlock, z: Tensor, label: Tensor) -> list[Tensor]:
    """x (1,N,D) after every sweep of Eq. 9 over all tokens, until `inverse_jacobi` would stop."""
    z = block.flip_if_reversed(z)
    x, found = z, []
    while True:
        shift, log_scale = block.all_shifts_and_log_scales(x, label)
        new = z * torch.exp(-log_scale) + shift
        moved, x = (new - x).abs().amax() > TOLERANCE * CONVERGED, new
        tokens = block.flip_if_reversed(x)
        found.append(tokens if block.mixing is None else block.mixing.inverse(tokens))
        if not moved:
            return found


def masked(model: Farmer, values: Tensor, *, causal: bool) -> dict[str, Any]:
    """|dz_i / dx_j| by token (N,N) of the first block, with its mask or without, and the round trip's largest error."""
    block, x = model.flow.blocks[0], model.patchify(middles(model, values))
    for layer in block.transformer.layers:
        layer.causal = causal
    try:
        jacobian = torch.autograd.functional.jacobian(lambda flat: block(flat.view_as(x))[0].flatten(), x.flatten())
        error = (block.inverse(block(x)[0]) - x).abs().max()
    finally:
        for layer in block.transformer.layers:
            layer.causal = True
    tokens, channels = x.shape[1:]
    by_token = jacobian.view(tokens, channels, tokens, channels).square().sum((1, 3)).sqrt()
    return {"jacobian": [numbers(row) for row in by_token], "error": float(error)}


def numbers(tensor: Tensor) -> list[float]:
    """The numbers of a tensor, to three decimals: enough for a picture."""
    return [round(value, 3) for value in tensor.flatten().tolist()]


@torch.no_grad()
def packing_loss(run: str, model: Farmer) -> Loss:
    """What the page's int8 weights change on the test images, each in the middle of its cell, given its class."""
    values, labels = test_images(run, model)
    images, packed = middles(model, values), as_packed(model, None)[0]
    change = model.log_prob(images, labels) - packed.log_prob(images, labels)
    bits = change.mean() / (model.config.dimensions * math.log(2))
    return Loss(bits_per_dim=abs(float(bits)), worst_nats=float(change.abs().max()))


def test_images(run: str, model: Farmer) -> tuple[Tensor, Tensor]:
    """Grey levels (B,C,H,W) and labels (B,) of the data set's first test images, at most `IMAGES`."""
    data = load_split(Run.open(run).dataset(), "test", model.config)
    chosen = [data[i] for i in range(min(len(data), IMAGES))]
    return torch.stack([values for values, _ in chosen]), torch.tensor([int(label) for _, label in chosen])


# -- pages -------------------------------------------------------------------------------------------------------------


def recorded_script(run: str) -> str:
    """A classic script that sets FARMER_RECORDED."""
    return f"globalThis.FARMER_RECORDED = {json.dumps(recorded(run), separators=(',', ':'))};\n"


def page(run: str) -> str:
    """One page with everything in it: scripts, weights, all widgets. It needs no other file and no network."""
    model, student = load(run)
    style = (STATIC / "live.css").read_text(encoding="utf-8")
    loss = packing_loss(run, model)
    parts = [recorded_script(run), weights_script(model, student)]
    parts += [(STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS]
    scripts = "".join(f"<script>\n{part}</script>\n" for part in parts)
    widgets = "\n".join(f'<section><div data-farmer="{name}"></div></section>' for name in WIDGETS)
    return PAGE.format(
        style=style,
        widgets=widgets,
        scripts=scripts,
        repository=REPOSITORY,
        bits=loss.bits_per_dim,
        nats=loss.worst_nats,
    )


def write(out: Path, run: str) -> Loss:
    """Write live.html and, for the book's pages, the scripts beside farmer.js; returns what packing lost."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "live.html").write_text(page(run), encoding="utf-8")
    model, student = load(run)
    (out / "weights.js").write_text(weights_script(model, student), encoding="utf-8")
    (out / "recorded.js").write_text(recorded_script(run), encoding="utf-8")
    return packing_loss(run, model)


def main() -> None:
    """Write live.html of a run and print what its packed weights lost."""
    parser = argparse.ArgumentParser(prog="python -m book.live", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", default="digits", help="a run folder, a shipped model or owner/name of the Hub")
    parser.add_argument("--out", type=Path, default=Path("live"), help="folder for live.html and its scripts")
    given = parser.parse_args()
    loss = write(given.out, given.run)
    path = given.out / "live.html"
    print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")
    print(f"8-bit weights: bits/dim {loss.bits_per_dim:.4f}, the worst test image {loss.worst_nats:.2f} nats off")


if __name__ == "__main__":
    cli.run(main)
