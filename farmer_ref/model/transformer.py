"""Pre-norm transformer layers with an explicit key/value cache: the network of the flow, the prior and the student.

Legend: B batch, T positions, W width, d width of an attention head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from farmer_ref.model.linear import Linear
from farmer_ref.model.precision import LayerNorm


class TrainingPass(NamedTuple):
    """How a training step runs the transformers; models take it as an optional last argument and pass it on (ours)."""

    rows: Tensor
    """(B,), the places of these images in the step's whole batch: an image's dropout depends on nothing else."""
    batch_size: int
    """Images in that whole batch, over all processes and accumulated parts."""
    recompute: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again (activation checkpointing)."""


class LayerCache(Protocol):
    """Keys and values of one attention layer for the positions so far."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store keys and values (B,heads,T,d) of T new positions. Returns those that these positions attend to, and
        a mask of which of them each may see (None: plain causality, or all of them if T = 1)."""


class GrowingCache:
    """A `LayerCache` of positions 0 .. length-1. Memory for `capacity` positions is allocated once, on first use."""

    def __init__(self, capacity: int, memory: Tensor | None = None, length: int = 0):
        """`memory`, if there is one already, is (2,B,heads,capacity,d): keys, then values."""
        self.capacity, self.memory, self.length = capacity, memory, length

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the next T positions, whatever T. Lowering `length` forgets the last ones."""
        if self.memory is None:
            self.memory = keys.new_empty(2, *keys.shape[:2], self.capacity, keys.shape[3])
        start, count = self.length, keys.shape[2]
        self.length += count
        self.memory[0, :, :, start : self.length] = keys
        self.memory[1, :, :, start : self.length] = values
        visible = None
        if start and count > 1:
            visible = torch.ones(count, self.length, dtype=torch.bool, device=keys.device).tril(start)
        return *self.memory[:, :, :, : self.length].unbind(), visible


class TokenDropout(nn.Module):
    """Dropout of channels with one mask for all tokens of an image (Gal and Ghahramani 2016).

    The paper does not mention dropout; small data sets need it. One mask per image rather than per token: drawing
    random numbers for every token takes a quarter of a training step on a CPU. Masks for a whole batch are cheap, so
    every process draws them all and uses those of its own images (`TrainingPass.rows`).
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor, training: TrainingPass | None = None) -> Tensor:
        """x (B,T,W) to x with some of each image's W channels zeroed and the others scaled up."""
        if not self.training or self.probability == 0:
            return x
        batch = x.shape[0] if training is None else training.batch_size
        masks = F.dropout(x.new_ones(batch, 1, x.shape[-1]), self.probability)
        return x * (masks if training is None else masks[training.rows])


class TransformerLayer(nn.Module):
    """x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x)); GELU, dropout on both branches."""

    def __init__(self, width: int, head_dim: int, *, causal: bool = True, dropout: float = 0.0):
        super().__init__()
        self.heads, self.head_dim, self.causal = width // head_dim, head_dim, causal
        self.attention_norm = LayerNorm(width)
        self.attention_in = Linear(width, 3 * width)
        self.attention_out = Linear(width, width)
        self.mlp_norm = LayerNorm(width)
        self.mlp_in = Linear(width, 4 * width)
        self.mlp_out = Linear(4 * width, width)
        self.dropout = TokenDropout(dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None, *, training: TrainingPass | None = None) -> Tensor:
        """x (B,T,W) to (B,T,W). With a cache, x holds the positions that follow those in it."""
        if training is not None and training.recompute and cache is None:
            return checkpoint(self._forward, x, None, training, use_reentrant=False)
        return self._forward(x, cache, training)

    def _forward(self, x: Tensor, cache: LayerCache | None, training: TrainingPass | None) -> Tensor:
        batch, length, width = x.shape
        heads = self.attention_in(self.attention_norm(x)).view(batch, length, 3, width // self.head_dim, self.head_dim)
        query, keys, values = heads.permute(2, 0, 3, 1, 4)  # each (B,heads,T,d)
        visible = None
        if cache is not None:
            keys, values, visible = cache.append(keys, values)
        causal = self.causal and visible is None and (cache is None or length > 1)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible, is_causal=causal)
        attended = self.attention_out(attended.transpose(1, 2).reshape(batch, length, width))  # (B,T,W)
        x = x + self.dropout(attended, training)
        return x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))), training)


class Transformer(nn.Module):
    """A stack of layers, causal or not. Embeddings, positions and heads belong to the module that uses it."""

    def __init__(self, layers: int, width: int, *, head_dim: int, causal: bool = True, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(width, head_dim, causal=causal, dropout=dropout) for _ in range(layers)
        )

    def new_cache(self, capacity: int) -> list[GrowingCache]:
        """An empty cache for `capacity` positions, to be passed to `forward`."""
        return [GrowingCache(capacity) for _ in self.layers]

    def forward(
        self, x: Tensor, cache: Sequence[LayerCache] | None = None, *, training: TrainingPass | None = None
    ) -> Tensor:
        """x (B,T,W) to (B,T,W). If causal, output i depends on positions 0 .. i only."""
        for layer, layer_cache in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            x = layer(x, layer_cache, training=training)
        return x


def transformer_layers(model: nn.Module) -> list[TransformerLayer]:
    """All transformer layers inside a module: those of the flow's blocks and of the prior."""
    return [module for module in model.modules() if isinstance(module, TransformerLayer)]
