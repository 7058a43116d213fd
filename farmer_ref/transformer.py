"""Pre-norm transformer layers with an explicit key/value cache: the network of the flow, the prior and the student.

Legend: B batch, T positions, W width, d width of an attention head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context in which autocast is off: densities, projections into and out of a transformer, and heads."""
    return torch.autocast(tensor.device.type, enabled=False)


class LayerCache(Protocol):
    """Keys and values of one attention layer for the positions so far."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store keys and values (B,heads,T,d) of T new positions; returns those that these positions attend to, and
        which of them each may see (None: plain causality, or all if T = 1)."""


class GrowingLayerCache:
    """Keys and values of positions 0 .. length-1; memory for `capacity` is taken once, at the first call."""

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The next T positions, whatever T. To lower `length` is to forget the last ones."""
        if self._keys is None or self._values is None:
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self._keys, self._values = keys.new_empty(shape), values.new_empty(shape)
        start, count = self.length, keys.shape[2]
        self.length += count
        self._keys[:, :, start : self.length] = keys
        self._values[:, :, start : self.length] = values
        visible = None
        if start and count > 1:
            visible = torch.ones(count, self.length, dtype=torch.bool, device=keys.device).tril(start)
        return self._keys[:, :, : self.length], self._values[:, :, : self.length], visible


class FixedLayerCache:
    """One layer of a `FixedCache` for the step at `position`."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor, visible: Tensor):
        self._keys, self._values, self._position, self._visible = keys, values, position, visible

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store at `position`; returns all of the memory, with what lies after each position hidden."""
        self._keys.index_copy_(2, self._position, keys)
        self._values.index_copy_(2, self._position, values)
        return self._keys, self._values, self._visible


class FixedCache:
    """Keys and values of a whole transformer in memory of one shape, addressed by a *tensor*: so that every step is the
    same list of kernels, which `record_step` can record."""

    def __init__(self, transformer: Transformer, batch: int, capacity: int, like: Tensor):
        kind = like.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
        # Zeros, not `empty`: what is hidden is multiplied by 0, and 0 times a stray NaN is NaN.
        self._memory = [
            [like.new_zeros(batch, layer.heads, capacity, layer.head_dim, dtype=dtype) for _ in ("keys", "values")]
            for layer in transformer.layers
        ]
        self._places = torch.arange(capacity, device=like.device)

    def at(self, position: Tensor) -> list[LayerCache]:
        """What `Transformer.forward` takes for the step at `position` (T,), whole numbers."""
        visible = self._places <= position[:, None]  # (T,capacity)
        return [FixedLayerCache(keys, values, position, visible) for keys, values in self._memory]


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which steps are recorded: not the default one, and always the same, as each takes memory."""
    return torch.cuda.Stream(device)


def record_step(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`step` as a CUDA graph: the same kernels on the same memory, launched at once instead of one by one.

    A step of decoding is dozens of small kernels, and launching them takes longer than running them. `step` takes and
    returns nothing: it reads and writes tensors that stay where they are. It runs twice before it is recorded, so the
    caller sets its state afterwards. On other devices it is returned as it is.
    """
    if device.type != "cuda":
        return step
    with torch.cuda.device(device):
        aside, graph = _side_stream(device), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and take their workspaces now
                step()
        torch.cuda.current_stream().wait_stream(aside)
        # thread_local: another thread may use the GPU meanwhile, to pin a data loader's batches, say.
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            step()

    def replay(memory: object = step) -> None:  # the graph knows only addresses: `memory` keeps what lies there
        graph.replay()

    return replay


class TokenDropout(nn.Module):
    """Dropout of channels with one mask for all tokens of an image (Gal and Ghahramani 2016).

    The paper does not mention dropout; small data sets need it. One mask per image rather than per token: drawing
    random numbers for every token takes a quarter of a training step on a CPU, and the masks of a whole batch are
    quickly drawn, so that every process draws them all and takes those of its images (`set_dropout_rows`).
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability
        self.first, self.batch = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        """x (B,T,W) to x with some of the W channels of an image at 0, the others scaled up."""
        if not self.training or self.probability == 0:
            return x
        masks = F.dropout(x.new_ones(max(self.batch, len(x)), 1, x.shape[-1]), self.probability)
        return x * masks[self.first : self.first + len(x)]


def set_dropout_rows(model: nn.Module, first: int, batch: int) -> None:
    """From now on `model` sees the images first, first + 1, ... of a batch: dropout depends on that, not on how the
    batch is divided."""
    for module in model.modules():
        if isinstance(module, TokenDropout):
            module.first, module.batch = first, batch


class TransformerLayer(nn.Module):
    """x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x)); GELU, dropout on both branches, causal or not."""

    def __init__(self, width: int, head_dim: int, dropout: float):
        super().__init__()
        self.heads, self.head_dim, self.causal = width // head_dim, head_dim, True
        self.checkpoint_activations = False  # in training keep the input only, and compute the rest again for backward
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.dropout = TokenDropout(dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x (B,T,W) to (B,T,W). With a cache, x holds the positions that follow those in it."""
        if self.checkpoint_activations and self.training and cache is None:
            return checkpoint(self._forward, x, None, use_reentrant=False)
        return self._forward(x, cache)

    def _forward(self, x: Tensor, cache: LayerCache | None) -> Tensor:
        batch, length, width = x.shape
        heads = self.attention_in(self.attention_norm(x)).view(batch, length, 3, -1, self.head_dim)
        query, keys, values = heads.permute(2, 0, 3, 1, 4)  # each (B,heads,T,d)
        visible = None
        if cache is not None:
            keys, values, visible = cache.append(keys, values)
        causal = self.causal and visible is None and (cache is None or length > 1)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible, is_causal=causal)
        x = x + self.dropout(self.attention_out(attended.transpose(1, 2).reshape(batch, length, width)))
        return x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))))


class Transformer(nn.Module):
    """A stack of layers. Embedding, positions and heads belong to whoever uses it."""

    def __init__(self, layers: int, width: int, head_dim: int, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(width, head_dim, dropout) for _ in range(layers))

    def bidirectional(self) -> Transformer:
        """From now on every position sees all of them (the one-step student, §3.5)."""
        for layer in self.layers:
            layer.causal = False
        return self

    def new_cache(self, capacity: int) -> list[GrowingLayerCache]:
        """An empty cache for `capacity` positions, to be passed to `forward`."""
        return [GrowingLayerCache(capacity) for _ in self.layers]

    def forward(self, x: Tensor, cache: Sequence[LayerCache] | None = None) -> Tensor:
        """x (B,T,W) to (B,T,W); unless bidirectional, output i depends on positions 0 .. i only."""
        for i, layer in enumerate(self.layers):
            x = layer(x, cache[i] if cache is not None else None)
        return x


def transformer_layers(model: nn.Module) -> list[TransformerLayer]:
    """All transformer layers inside a module: those of the flow's blocks and of the prior."""
    return [module for module in model.modules() if isinstance(module, TransformerLayer)]
