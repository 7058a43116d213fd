"""FARMER live in the page: the weights of a run as scripts, recorded states, and one page that works alone.

`python -m book.live --run digits --out live` writes live/live.html, a single file, and prints what its weights lost.
The book's build writes the same parts beside its pages. The scripts themselves are in book/_static/live/.

Legend: B batch, N tokens, D channels of a token, I of them informative, n flow blocks, L grey levels.
"""

from __future__ import annotations

import argparse
import base64
import copy
import dataclasses
import gzip
import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from book.equations import HERE, REPOSITORY, ROOT
from farmer_ref.data.sets import load_split
from farmer_ref.model.farmer import Farmer
from farmer_ref.model.flow import FlowBlock
from farmer_ref.model.guidance import weighed_candidates
from farmer_ref.model.jacobi import CONVERGED, inverse_jacobi
from farmer_ref.model.pixels import HistogramPixels
from farmer_ref.model.prior import AutoregressivePrior
from farmer_ref.model.student import OneStepStudent
from farmer_ref.model.tokens import nats_to_bits_per_dim
from farmer_ref.support import cli
from farmer_ref.support.errors import require
from farmer_ref.support.files import PRETRAINED, pretrained_folder
from farmer_ref.training.runs import Run

STATIC = HERE / "_static" / "live"
Format = Literal["int8", "float32"]
MODELS = ("mnist", "digits")  # shipped models that a page can carry, the better one first
OFFLINE = {"mnist": "mnist-small"}  # the part of a data set that ships with the package
TOLERANCE = 1e-5  # of the sweeps, as that of `inverse_jacobi`
IMAGES = 300  # test images for the histogram and for what packing loses
BINS = 40
EXAMPLE, SEED = 3, 0  # the class, and the seed, of the recorded states
SHOWN = 3  # channels of a token whose curves are drawn
SCALE = 24  # recorded pictures are whole numbers, this often the values
NUDGE = 1e-2  # how far a token is moved to see which others follow
INKED = 0.02  # the share of test images with ink from which a row or column belongs to the digits
SCRIPTS = ("farmer.js", "live.js")  # in this order, after the recorded states
LOADED = ("recorded.js", *SCRIPTS)  # by a page of the book; live.html gives the weights when a widget is touched
WIDGETS: dict[str, Callable[..., Any]] = {  # and the functions that compute the same in PyTorch
    "draw": Farmer.log_prob,
    "sample": AutoregressivePrior.sample_with_report,
    "guidance": weighed_candidates,
    "race": inverse_jacobi,
    "mask": FlowBlock.forward,
    "volume": Farmer.forward,
}
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
<p>The weights are stored in 8 bits. On {loss.images} test images that changes bits/dim by {loss.bits_per_dim:.4f} on
average, and the log-density of the worst image by {loss.worst_nats:.2f} nats.</p>
{scripts}</body>
</html>
"""
LEARNED = (".weight", ".bias", "positions")  # tensors whose names end so are packed


class Loss(NamedTuple):
    """What packing the weights changed on the test images: bits/dim on average, nats of the worst image."""

    bits_per_dim: float
    worst_nats: float
    images: int


class Parts(NamedTuple):
    """The scripts that a page loads, by name, and what packing the weights lost."""

    scripts: dict[str, str]
    loss: Loss


# -- weights -----------------------------------------------------------------------------------------------------------


def shipped() -> list[str]:
    """The shipped models that a page can carry, the better one first."""
    return [name for name in MODELS if (PRETRAINED / name / "model.safetensors").is_file()]


def load(run: str) -> tuple[Farmer, OneStepStudent | None]:
    """The model of a run folder or a shipped name, and its student if it has one."""
    model = Farmer.from_pretrained(run)
    config = model.config
    require(config.flow == "autoregressive", "flow", config.flow, "autoregressive")
    require(config.dequantisation == "uniform", "dequantisation", config.dequantisation, "uniform")
    require(config.channels == 1, "channels", config.channels, "1")
    require(config.num_classes > 1, "num_classes", config.num_classes, "2 or more")
    require(not config.flow_sees_class, "flow_sees_class", config.flow_sees_class, "False")
    require(not config.noise_width, "noise_width", config.noise_width, "0")
    student = (pretrained_folder(run) / "student.safetensors").is_file()
    return model, OneStepStudent.from_pretrained(run, model.flow) if student else None


def pack(tensors: dict[str, Tensor], format: Format) -> tuple[list[list[Any]], bytes, dict[str, Tensor]]:
    """A table of (name, shape, bytes of a number), the bytes of all tensors in its order, and the tensors as read back.

    Beside matrices in int8, vectors and the scales of rows are bfloat16, the upper half of a float32. What must stay an
    exact inverse or log-determinant (bases, learned channel mixing) is float32.
    """
    table, parts, read = [], [], {}
    for name, tensor in tensors.items():
        size = 4
        if format == "int8" and name.endswith(LEARNED):
            size = min(2, 3 - tensor.dim())
        table.append([name, list(tensor.shape), size])
        if size == 1:
            scale = (tensor.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127).bfloat16().float()  # (rows,1)
            whole = (tensor / scale).round().clamp(-127, 127)
            parts += [upper_halves(scale), whole.numpy().astype(np.int8).tobytes()]
            read[name] = whole * scale
        elif size == 2:
            read[name] = tensor.bfloat16().float()
            parts.append(upper_halves(read[name]))
        else:
            read[name] = tensor
            parts.append(tensor.numpy().astype("<f4").tobytes())
    return table, b"".join(parts), read


def upper_halves(tensor: Tensor) -> bytes:
    """The upper two bytes of each float32."""
    return (tensor.numpy().astype("<f4").reshape(-1).view("<u4") >> 16).astype("<u2").tobytes()


def tensors_of(module: Farmer | OneStepStudent) -> dict[str, Tensor]:
    """Every tensor that farmer.js reads, float32; learned channel mixing as its matrix and that matrix's inverse."""
    other = ("patchify.fitted", "pixels.counts", "teacher_fingerprint")
    found = {name: tensor.float() for name, tensor in module.state_dict().items() if name not in other}
    for name, block in module.named_modules():
        mixing = getattr(block, "mixing", None)
        if mixing is None:
            continue
        matrix = torch.linalg.multi_dot(mixing._factors(torch.float64)).detach()
        for part in ("permutation", "sign", "lower", "upper"):
            del found[f"{name}.mixing.{part}"]
        found[f"{name}.mixing.matrix"] = matrix.float()
        found[f"{name}.mixing.inverse"] = matrix.inverse().float()
    return found


def as_packed(module: Farmer) -> Farmer:
    """A copy of the model with the weights that the page has."""
    _, _, read = pack(tensors_of(module), "int8")
    module = copy.deepcopy(module)
    module.load_state_dict({name: read.get(name, tensor) for name, tensor in module.state_dict().items()})
    return module


def pixels_of(model: Farmer) -> dict[str, Any]:
    """What farmer.js needs of the pixels' coordinates: nothing, or the histogram."""
    return {"counts": model.pixels.counts[0].tolist()} if isinstance(model.pixels, HistogramPixels) else {}


def weights_script(model: Farmer, format: Format = "int8") -> str:
    """A classic script that sets FARMER_WEIGHTS: a page from a file may load it, and may not load anything else."""
    table, data, _ = pack(tensors_of(model), format)
    found = {
        "config": dataclasses.asdict(model.config),
        "pixels": pixels_of(model),
        "order": model.prior.channel_order.tolist(),
        "reversed": model.config.prior_reversed,
        "kernel": base64.b64encode((STATIC / "kernel.wasm").read_bytes()).decode(),
        "tensors": table,
        "data": base64.b64encode(data).decode(),
    }
    return f"globalThis.FARMER_WEIGHTS = {compact(found)};\n"


def student_script(student: OneStepStudent, format: Format = "int8") -> str:
    """A script that adds a student to FARMER_WEIGHTS."""
    table, data, _ = pack(tensors_of(student), format)
    found = {"form": student.form, "tensors": table, "data": base64.b64encode(data).decode()}
    return f"FARMER_WEIGHTS.student = {compact(found)};\n"


def compact(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


# -- recorded states ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def recorded(run: str, model: Farmer, student: OneStepStudent | None) -> tuple[dict[str, Any], Loss]:
    """What the widgets show before anyone touches them, computed by PyTorch with the page's weights; what those lost.

    The loss is that of test images, each in the middle of its cell, given its class.
    """
    packed, config = as_packed(model), model.config
    values, labels = test_images(run, model)
    images = middles(model, values)
    found = packed.log_prob(images, labels)
    change = model.log_prob(images, labels) - found
    bits = change.mean() / (config.dimensions * math.log(2))
    loss = Loss(bits_per_dim=abs(float(bits)), worst_nats=float(change.abs().max()), images=len(values))
    least = np.quantile(found.numpy(), 0.01)  # a few outliers would squeeze all others
    counts, edges = np.histogram(found.clamp(min=float(least)).numpy(), bins=BINS)
    examples = [values[labels == c][middle(found[labels == c])] for c in range(config.num_classes)]
    torch.manual_seed(SEED)
    label = torch.tensor([EXAMPLE])
    z = packed.prior.sample(label)
    return {
        "config": {name: getattr(config, name) for name in ("image_size", "patch_size", "levels", "num_classes")},
        "pixels": pixels_of(model),
        "sources": {name: source_of(function) for name, function in WIDGETS.items()},
        "examples": [base64.b64encode(example.numpy().tobytes()).decode() for example in examples],
        "example": EXAMPLE,
        "frame": frame_of(values, config.levels),
        "histogram": {"from": float(edges[0]), "step": float(edges[1] - edges[0]), "counts": counts.tolist()},
        "draw": drawing(packed, examples[EXAMPLE][None]),
        "sample": way_to_image(packed, student, z, label),
        "mask": [masked(packed, examples[EXAMPLE][None], causal=causal) for causal in (True, False)],
    }, loss


def test_images(run: str, model: Farmer) -> tuple[Tensor, Tensor]:
    """Grey levels (B,C,H,W) and labels (B,) of the data set's first test images, at most `IMAGES`."""
    name = Run.open(run).dataset()
    data = load_split(OFFLINE.get(name, name), "test", model.config)
    chosen = [data[i] for i in range(min(len(data), IMAGES))]
    return torch.stack([values for values, _ in chosen]), torch.tensor([int(label) for _, label in chosen])


def middles(model: Farmer, values: Tensor) -> Tensor:
    """Grey levels (B,C,H,W) as images whose every pixel is the middle of its level's cell, as the page takes them."""
    return model.dequantiser(values, torch.full(values.shape, 0.5))


def middle(log_probs: Tensor) -> int:
    """The place of the median of log-densities (B,): a typical image, neither the neatest nor the oddest."""
    return int(log_probs.argsort()[len(log_probs) // 2])


def frame_of(values: Tensor, levels: int) -> list[int]:
    """Left, top, right and bottom of the rows and columns where test images (B,1,H,W) have ink, in pixels."""
    inked = (values > levels / 4).float().mean((0, 1)) > INKED  # (H,W)
    down, across = inked.any(1).nonzero()[:, 0], inked.any(0).nonzero()[:, 0]
    return [int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1]


def source_of(function: Callable[..., Any]) -> dict[str, str]:
    """Name and address of a function of the package."""
    function = inspect.unwrap(function)  # not the file of a decorator
    path = Path(inspect.getfile(function)).relative_to(ROOT).as_posix()
    line = inspect.getsourcelines(function)[1]
    return {"name": function.__qualname__, "address": f"{REPOSITORY}/blob/main/{path}#L{line}"}


def drawing(model: Farmer, values: Tensor) -> dict[str, Any]:
    """The figures of one image (1,1,H,W) of grey levels, as `Farmer.bayes` of farmer.js gives them."""
    config, images, classes = model.config, middles(model, values), torch.arange(model.config.num_classes)
    log_probs = model.log_prob(images.expand(len(classes), -1, -1, -1), classes)
    best = log_probs.argmax()[None]
    terms, (z, _) = model.likelihood_terms(images, best), model.encode(images, best)
    mixtures, shared = model.prior.mixtures(z, best)
    informative, redundant = model.prior.split(z)
    per_token = mixtures.log_prob(informative)
    if shared is not None:
        per_token = per_token + shared.unsqueeze().log_prob(redundant)
    _, log_slope = model.pixels(images.view(-1, 1, 1, 1))  # of each pixel: the package only sums them, and what follows
    slopes = F.avg_pool2d(log_slope.view_as(images), config.patch_size, divisor_override=1)
    per_token = per_token + slopes.flatten(1)
    x, _ = model.to_tokens(images)
    for block in model.flow.blocks:
        x, logdet = (x, torch.zeros(1)) if block.mixing is None else block.mixing(x)
        x = block.flip_if_reversed(x)
        shift, log_scale = block.all_shifts_and_log_scales(x, best)
        per_token = per_token + logdet[:, None] / x.shape[1] + block.flip_if_reversed(log_scale).sum(-1)
        x = block.flip_if_reversed((x - shift) * log_scale.exp())
    bits = nats_to_bits_per_dim(terms.total, config.dimensions, config.levels)
    return {
        **{name: float(term) for name, term in terms._asdict().items()},
        "total": float(terms.total),
        "perToken": numbers(per_token),
        "posterior": torch.softmax(log_probs.double(), 0).tolist(),
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
            "drawn": informative[0, place, :SHOWN],
            "logWeights": torch.log_softmax(mixtures.logits[0, place], -1),
            "mean": mixtures.mean[0, place, :, :SHOWN],
            "logScale": mixtures.log_scale[0, place, :, :SHOWN],
        }
        steps.append({"place": place, **{name: numbers(tensor) for name, tensor in found.items()}})

    def picture(tokens: Tensor) -> str:
        whole = (model.patchify.inverse(tokens) * SCALE).round().clamp(-127, 127)
        return base64.b64encode(whole.numpy().astype(np.int8).tobytes()).decode()

    levels, sweeps, x = [picture(z)], [], z
    for block in reversed(model.flow.blocks):
        sweeps.append([picture(guess) for guess in jacobi_sweeps(block, x, label)])
        x = block.inverse(x, label)
        levels.append(picture(x))
    path = [picture(level) for level in student.path(z, label)] if student else []
    return {"label": int(label), "scale": SCALE, "steps": steps, "levels": levels, "sweeps": sweeps, "student": path}


def jacobi_sweeps(block: FlowBlock, z: Tensor, label: Tensor) -> list[Tensor]:
    """x (1,N,D) after every sweep of Eq. 9, until all tokens are final; which are, as `inverse_jacobi` finds it."""
    z = block.flip_if_reversed(z)
    x, found, begin, last = z, [], 0, z.shape[1] - 1
    while begin < last:
        shift, log_scale = block.all_shifts_and_log_scales(x, label)
        new = z * torch.exp(-log_scale) + shift
        moved = ~((new - x)[0].abs().amax(-1) <= TOLERANCE * CONVERGED)  # (N,); what is not a number has moved
        later = moved[begin + 1 :].nonzero()
        begin = begin + 1 + int(later[0, 0]) if len(later) else last  # the first that moved has only final inputs
        x = new
        tokens = block.flip_if_reversed(x)
        found.append(tokens if block.mixing is None else block.mixing.inverse(tokens))
    return found


def masked(model: Farmer, values: Tensor, *, causal: bool) -> dict[str, Any]:
    """The first block, with its causal mask or without: how far each token of z moves when one of x is nudged, row by
    row (N N), and the round trip's largest error."""
    block, (x, _) = model.flow.blocks[0], model.to_tokens(middles(model, values))
    nudged = x + NUDGE * torch.eye(x.shape[1])[:, :, None]  # (N,N,D): copy j has token j moved
    for layer in block.transformer.layers:
        layer.causal = causal
    try:
        z = block(x)[0]
        moves = (block(nudged)[0] - z).norm(dim=-1).T / NUDGE
        error = (block.inverse(z) - x).abs().max()
    finally:
        for layer in block.transformer.layers:
            layer.causal = True
    return {"moves": numbers(moves), "error": float(error)}


def numbers(tensor: Tensor) -> list[float]:
    """The numbers of a tensor, to two decimals: enough for a picture."""
    return [round(value, 2) for value in tensor.flatten().tolist()]


# -- pages -------------------------------------------------------------------------------------------------------------


def without_comments(script: str) -> str:
    """A script without its comments and its indentation, for pages: what is read is the file in the repository."""
    return re.sub(r"^\s+", "", re.sub(r"(^|\s)//.*$", "", script, flags=re.MULTILINE), flags=re.MULTILINE)


def script_bytes() -> dict[str, int]:
    """The size of farmer.js and live.js together: as they are written, as pages have them, and that in gzip."""
    written = [(STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS]
    served = [without_comments(script).encode() for script in written]
    sizes = sum(len(script.encode()) for script in written), sum(map(len, served)), len(gzip.compress(b"".join(served)))
    return dict(zip(("written", "served", "gzip"), sizes, strict=True))


def parts(run: str) -> Parts:
    """The scripts that a page loads, in order: recorded states, the weights, farmer.js and live.js."""
    model, student = load(run)
    states, loss = recorded(run, model, student)
    scripts = {"recorded.js": f"globalThis.FARMER_RECORDED = {compact(states)};\n", "weights.js": weights_script(model)}
    if student is not None:
        scripts["student.js"] = student_script(student)
    for name in SCRIPTS:
        scripts[name] = without_comments((STATIC / name).read_text(encoding="utf-8"))
    return Parts(scripts, loss)


def write(out: Path, run: str) -> Loss:
    """Write live.html, which needs no other file, and what other pages load beside it; returns what packing lost."""
    scripts, loss = parts(run)
    out.mkdir(parents=True, exist_ok=True)
    for name in LOADED:
        (out / name).write_text(scripts[name], encoding="utf-8")
    page = PAGE.format(
        style=(STATIC / "live.css").read_text(encoding="utf-8"),
        widgets="\n".join(f'<section id="{name}"><div data-farmer="{name}"></div></section>' for name in WIDGETS),
        scripts="".join(f"<script>\n{script}</script>\n" for script in scripts.values()),
        repository=REPOSITORY,
        loss=loss,
    )
    (out / "live.html").write_text(page, encoding="utf-8")
    return loss


def main() -> None:
    """Write live.html of a run and print what its packed weights lost."""
    parser = argparse.ArgumentParser(prog="python -m book.live", description=(__doc__ or "").split("\n")[0])
    run = "a run folder, a shipped model or owner/name of the Hub"
    parser.add_argument("--run", default=shipped()[0], help=f"{run} (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("live"), help="folder for live.html and its scripts")
    given = parser.parse_args()
    loss, page = write(given.out, given.run), given.out / "live.html"
    print(f"{page} ({page.stat().st_size / 1e6:.2f} MB)")
    print(f"8-bit weights: bits/dim {loss.bits_per_dim:.4f}, the worst test image {loss.worst_nats:.2f} nats off")


if __name__ == "__main__":
    cli.run(main)
