"""Pre-norm causal transformer layers with an explicit key/value cache: the network of the flow and of the prior.

Legend: B batch, T positions, W width, d width of an attention head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context in which autocast is off: densities, projections into and out of a transformer, and heads."""
    return torch.autocast(tensor.device.type, enabled=False)


class LayerCache:
    """Keys and values of one attention layer for positions 0 .. length-1; memory for `capacity` is taken once."""

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B,heads,T,d) of the next T positions; returns those of all positions so far."""
        if self._keys is None or self._values is None:
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self._keys, self._values = keys.new_empty(shape), values.new_empty(shape)
        start, self.length = self.length, self.length + keys.shape[2]
        self._keys[:, :, start : self.length] = keys
        self._values[:, :, start : self.length] = values
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]


class TokenDropout(nn.Module):
    """Dropout of channels with one mask for all tokens of an image (Gal and Ghahramani 2016).

    The paper does not mention dropout; small data sets need it. One mask per image rather than per token: drawing
    random numbers for every token takes a quarter of a training step on a CPU.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """x (B,T,W) to x with some of the W channels of an image at 0, the others scaled up."""
        if not self.training or self.probability == 0:
            return x
        return x * F.dropout(torch.ones_like(x[:, :1]), self.probability)


class TransformerLayer(nn.Module):
    """x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x)); causal, GELU, dropout on both branches."""

    def __init__(self, width: int, head_dim: int, dropout: float):
        super().__init__()
        self.head_dim = head_dim
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.dropout = TokenDropout(dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x (B,T,W) to (B,T,W). With a cache, x holds the positions that follow those in it.

        A cache takes either all first positions at once or one position at a time.
        """
        batch, length, width = x.shape
        heads = self.attention_in(self.attention_norm(x)).view(batch, length, 3, -1, self.head_dim)
        query, keys, values = heads.permute(2, 0, 3, 1, 4)  # each (B,heads,T,d)
        if cache is not None:
            keys, values = cache.append(keys, values)
        attended = F.scaled_dot_product_attention(query, keys, values, is_causal=length > 1)
        x = x + self.dropout(self.attention_out(attended.transpose(1, 2).reshape(batch, length, width)))
        return x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))))


class Transformer(nn.Module):
    """A stack of causal layers. Embedding, positions and heads belong to whoever uses it."""

    def __init__(self, layers: int, width: int, head_dim: int, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(width, head_dim, dropout) for _ in range(layers))

    def new_cache(self, capacity: int) -> list[LayerCache]:
        """An empty cache for `capacity` positions, to be passed to `forward`."""
        return [LayerCache(capacity) for _ in self.layers]

    def forward(self, x: Tensor, cache: list[LayerCache] | None = None) -> Tensor:
        """x (B,T,W) to (B,T,W); output i depends on positions 0 .. i only."""
        for i, layer in enumerate(self.layers):
            x = layer(x, cache[i] if cache is not None else None)
        return x
