"""A model as graphs without Python, for any batch size: `torch.export` programs, and ONNX files (opset 23).

What another runtime needs: the likelihood, and one step each of what runs token by token. A step takes and returns its
cache, keys and values of earlier positions in tensors of one shape, which begin as zeros. Labels are as everywhere, -1
meaning none; no graph checks them.

    likelihood       images (B,C,H,W), labels (B,) -> the terms of log p(image | c), each (B,)
    prior_step       labels (B,), z (B,I), position (1,), keys, values -> hidden (B,W), the mixture of the next token's
                     informative channels (logits, mean, log-scale), keys, values
    prior_redundant  hidden (B,W) after the last position -> the mixture of all tokens' redundant channels
    flow_step_t      x (B,D), position (1,), labels (B,), keys, values -> shift (B,D) and log-scale (B,D) of the token
                     that follows x, keys, values: one for each block t = 1, ..., n of an autoregressive flow

The prior reads position 0, ..., M + N - 1 in turn: M times the condition (z is then ignored), then the tokens in the
prior's reading order. So the output at M - 1 + i is the mixture of token i + 1 in that order. A flow block is inverted
in its own reading order (`FlowBlock.reverse`): the first token passes through, and z_i / exp(log-scale) + shift is the
next x (Eq. 9). What lies around the steps stays outside: the order of tokens, `ChannelMixing.inverse` where there is
one, `Patchify.inverse`, and the inverses of the model's `pixels` and `noise`.

Legend: B batch, N tokens, D channels of a token, I of them informative, W width, M condition tokens, n flow blocks,
L layers of a transformer, d width of an attention head; keys and values are (L,B,heads,positions,d).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from farmer_ref.model.checks import evaluating
from farmer_ref.model.config import NULL_LABEL
from farmer_ref.model.farmer import Farmer
from farmer_ref.model.flow import AutoregressiveFlow, FlowBlock
from farmer_ref.model.prior import AutoregressivePrior
from farmer_ref.model.transformer import Transformer
from farmer_ref.support.errors import InputError

OPSET = 23  # the first whose attention is one operation
IN_ONE_FILE = 2**30  # bytes of weights; more of them go into a file beside the .onnx file, which must stay below 2 GB
MIXTURE = ("logits", "mean", "log_scale")
CACHE = ("keys", "values")
NEXT_CACHE = ("next_keys", "next_values")  # an input and an output of ONNX cannot have one name


class Graph(NamedTuple):
    """A module to export: example inputs for two images, by name, each with its batch dimension (None: it has none),
    and the names of its outputs."""

    module: nn.Module
    inputs: dict[str, tuple[Tensor, int | None]]
    outputs: tuple[str, ...]


class TensorCache:
    """A `LayerCache` in tensors of one shape (B,heads,positions,d), for one position at a time, never in place."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor):
        self.keys, self.values, self.position = keys, values, position

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put keys and values (B,heads,1,d) at `position`; returns all, and a mask that hides what is not yet there."""
        places = torch.arange(self.keys.shape[2], device=keys.device)
        here = (places == self.position)[:, None]  # (positions,1)
        self.keys, self.values = torch.where(here, keys, self.keys), torch.where(here, values, self.values)
        return self.keys, self.values, (places <= self.position)[None]


def _caches(keys: Tensor, values: Tensor, position: Tensor) -> list[TensorCache]:
    """One for each layer."""
    return [TensorCache(*layer, position) for layer in zip(keys.unbind(), values.unbind(), strict=True)]


def _stacked(caches: Sequence[TensorCache]) -> tuple[Tensor, Tensor]:
    """Keys and values of all layers, (L,B,heads,positions,d) each."""
    return torch.stack([cache.keys for cache in caches]), torch.stack([cache.values for cache in caches])


class PriorStep(nn.Module):
    """One position of the prior: a condition token or a token of latents, by `position`."""

    def __init__(self, prior: AutoregressivePrior):
        super().__init__()
        self.prior = prior

    def forward(
        self, labels: Tensor, z: Tensor, position: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Hidden state (B,W), logits (B,K), mean and log-scale (B,K,I) of the next token, keys and values."""
        prior, repeats = self.prior, self.prior.condition_repeats
        condition = prior._condition(labels, labels.shape[0])[:, position.clamp(max=repeats - 1)]  # (B,1,W)
        places = prior.flip_if_reversed(prior.positions)[(position - repeats).clamp(min=0, max=prior.tokens - 1)]
        inputs = torch.where(position < repeats, condition, prior._embed(z[:, None], places))
        caches = _caches(keys, values, position)
        hidden = prior._hidden(inputs, lambda x: prior.transformer(x, caches))[:, 0]
        mixture = prior._token_mixture(hidden)
        return hidden, mixture.logits, mixture.mean, mixture.log_scale, *_stacked(caches)


class RedundantMixture(nn.Module):
    """The prior's shared mixture from the hidden state at its last position."""

    def __init__(self, prior: AutoregressivePrior):
        super().__init__()
        self.prior = prior

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B,K), mean and log-scale (B,K,R) from the hidden state (B,W)."""
        mixture = self.prior._redundant_mixture(hidden)
        return mixture.logits, mixture.mean, mixture.log_scale


class FlowStep(nn.Module):
    """One position of a flow block: shift and log-scale of the token that follows, for its inverse   (Eq. 9)."""

    def __init__(self, block: FlowBlock):
        super().__init__()
        self.block = block

    def forward(
        self, x: Tensor, position: Tensor, labels: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shift and log-scale (B,D), keys and values."""
        caches = _caches(keys, values, position)
        places = self.block.embedded_positions(labels)[:, position]  # (1,1,W) or (B,1,W)
        shift, log_scale = self.block.shift_and_log_scale(
            x[:, None], places, lambda hidden: self.block.transformer(hidden, caches)
        )
        return shift[:, 0], log_scale[:, 0], *_stacked(caches)


def graphs(model: Farmer) -> dict[str, Graph]:
    """All graphs of a model, by name. Raises `InputError` where its patch basis or histogram is not fitted
    yet."""
    model.patchify.check_fitted()
    model.pixels.check_fitted()
    weight, config, prior, batch = model.prior.positions, model.config, model.prior, 2
    labels = torch.full((batch,), NULL_LABEL, device=weight.device), 0
    images = weight.new_zeros(batch, config.channels, config.image_size, config.image_size), 0
    position = torch.zeros(1, dtype=torch.long, device=weight.device), None

    def cache(transformer: Transformer, positions: int) -> dict[str, tuple[Tensor, int]]:
        layer = transformer.layers[0]
        shape = (len(transformer.layers), batch, layer.heads, positions, layer.head_dim)
        return {name: (weight.new_zeros(shape), 1) for name in CACHE}

    found = {
        "likelihood": Graph(model, {"images": images, "labels": labels}, ("informative", "redundant", "logdet")),
        "prior_step": Graph(
            PriorStep(prior),
            {
                "labels": labels,
                "z": (weight.new_zeros(batch, prior.informative), 0),
                "position": position,
                **cache(prior.transformer, prior.condition_repeats + prior.tokens),
            },
            ("hidden", *MIXTURE, *NEXT_CACHE),
        ),
    }
    if prior.redundant:
        hidden = weight.new_zeros(batch, weight.shape[1]), 0
        found["prior_redundant"] = Graph(RedundantMixture(prior), {"hidden": hidden}, MIXTURE)
    if isinstance(model.flow, AutoregressiveFlow):
        x = weight.new_zeros(batch, model.flow.channels), 0
        for t, block in enumerate(model.flow.blocks, 1):
            inputs = {"x": x, "position": position, "labels": labels, **cache(block.transformer, model.flow.tokens - 1)}
            found[f"flow_step_{t}"] = Graph(FlowStep(block), inputs, ("shift", "log_scale", *NEXT_CACHE))
    for graph in found.values():
        graph.module.train(model.training)  # a new module would begin in training mode, and take its parts there
    return found


def exported(graph: Graph) -> torch.export.ExportedProgram:
    """A graph as a program of `torch.export`, for any batch size, in evaluation mode and in the model's dtype."""
    inputs = {name: tensor for name, (tensor, _) in graph.inputs.items()}
    with evaluating(graph.module), torch.no_grad():
        return torch.export.export(graph.module, (), inputs, dynamic_shapes=_free_batch(graph))


def _free_batch(graph: Graph) -> dict[str, dict[int, torch.export.Dim]]:
    batch = torch.export.Dim("batch")
    return {name: {} if dim is None else {dim: batch} for name, (_, dim) in graph.inputs.items()}


def export_onnx(model: Farmer, folder: str | Path) -> list[Path]:
    """Write all graphs of a model as ONNX files into a folder; the files' paths. A batch may have any size.

    Needs the packages onnx and onnxscript: `pip install "farmer-ref[export]"`.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f'{package} is not installed; allowed: pip install "farmer-ref[export]"')
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, graph in graphs(model).items():
        weights = sum(parameter.nbytes for parameter in graph.module.parameters())
        paths.append(folder / f"{name}.onnx")
        with warnings.catch_warnings():  # all inputs give their batch dimension the same name
            warnings.filterwarnings("ignore", "# The axis name", UserWarning)
            torch.onnx.export(
                exported(graph),
                dynamo=True,
                f=paths[-1],
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=_free_batch(graph),  # names the dimension in the file
                external_data=weights > IN_ONE_FILE,
                verbose=False,
            )
    return paths
