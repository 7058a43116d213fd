"""An affine coupling flow, the alternative to the autoregressive one behind the same interface (Table 4).

In each block, one half of the values stays as it is and determines how the other half is shifted and scaled (RealNVP,
Dinh et al. 2017). With a transformer over the patches, which sees all tokens, this is Jet (Kolesnikov et al. 2025),
whose halves we take. Both directions take one parallel pass per block; the price is that a block transforms only half
of the values.

Legend: B batch, N tokens, D channels of a token. Log-determinants are per-image sums in nats, (B,).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from farmer_ref.model.flow import Flow, FlowBlock
from farmer_ref.model.precision import full_precision
from farmer_ref.model.transformer import TrainingPass


class CouplingBlock(nn.Module):
    """z = x where `kept`, else (x - mu(x_kept)) * sigma(x_kept): the network of an AF block, seeing all tokens."""

    kept: Tensor

    def __init__(self, kept: Tensor, **network: Any):
        """`kept` (N,D): which values stay; `network` are the options of `FlowBlock`."""
        super().__init__()
        self.network = FlowBlock(*kept.shape, causal=False, **network)
        self.register_buffer("kept", kept.clone())  # saved with the weights, which mean nothing with other halves

    def _shift_and_log_scale(
        self, x: Tensor, labels: Tensor | None, training: TrainingPass | None = None
    ) -> tuple[Tensor, Tensor]:
        """mu and log sigma (B,N,D), 0 where `kept`, from x or from z: the two agree on the kept values."""
        run = partial(self.network.transformer, training=training)
        positions = self.network.embedded_positions(labels)
        shift, log_scale = self.network.shift_and_log_scale(x * self.kept, positions, run)
        return shift * ~self.kept, log_scale * ~self.kept

    def forward(
        self, x: Tensor, labels: Tensor | None = None, training: TrainingPass | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B,N,D) to z (B,N,D) and log|det dz/dx| (B,)."""
        logdet = x.new_zeros(x.shape[0])
        if self.network.mixing is not None:
            x, logdet = self.network.mixing(x)
        shift, log_scale = self._shift_and_log_scale(x, labels, training)
        return (x - shift) * log_scale.exp(), logdet + log_scale.sum((1, 2))

    @torch.no_grad()
    def inverse(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z (B,N,D) to x (B,N,D), in one pass."""
        with full_precision(z):
            shift, log_scale = self._shift_and_log_scale(z, labels)
            x = z * torch.exp(-log_scale) + shift
            return x if self.network.mixing is None else self.network.mixing.inverse(x)


class CouplingFlow(Flow):
    """n coupling blocks, Z = F_n o ... o F_1 (X), with the interface of `AutoregressiveFlow`.

    The order is that of Jet's public code (big_vision, models/proj/jet/jet.py): two blocks couple channels, in halves
    that a fixed random permutation chooses, then one couples tokens, on a checkerboard whose colours take turns. Where
    Jet permutes anew for each of its many blocks, the second of our two has the halves of the first, swapped, so that
    few blocks reach all channels. Jet's scale is 2 sigmoid(raw), ours the bounded exponential of the AF's blocks, so
    that Table 4 compares nothing but the kind of flow. Glow's learned channel mixing is available here, too.
    """

    def __init__(self, tokens: int, channels: int, *, blocks: int, **options: Any):
        """`blocks` is their number n; `options` are those of `FlowBlock`, the same for all blocks."""
        of_channels, of_tokens = _halves_of_channels(channels), _checkerboards(tokens)
        halves = [next(of_tokens if t % 3 == 2 else of_channels) for t in range(blocks)]
        made = (CouplingBlock(torch.tensor(half).expand(tokens, channels), **options) for half in halves)
        super().__init__(tokens, channels, blocks=made)


def _halves_of_channels(channels: int) -> Iterator[list[bool]]:
    """Which channels (D) a block keeps, without end: a random half, then the other one, then a new half, and so on.

    All flows of so many channels have the same. No division into halves repeats before all have appeared.
    """
    generator, seen = random.Random(0), set()
    divisions = math.comb(channels, channels // 2) // (2 if channels % 2 == 0 else 1)
    while True:
        if len(seen) == divisions:
            seen.clear()
        chosen = set(generator.sample(range(channels), channels // 2))
        kept = [channel in chosen for channel in range(channels)]
        division = tuple(value == kept[0] for value in kept)  # the same for either half
        if division not in seen:
            seen.add(division)
            yield kept
            yield [not value for value in kept]


def _checkerboards(tokens: int) -> Iterator[list[list[bool]]]:
    """Which tokens (N,1) of a square image a block keeps, without end: the squares of one colour, then of the other."""
    side = math.isqrt(tokens)
    white = [[(token // side + token % side) % 2 == 0] for token in range(tokens)]
    while True:
        yield white
        yield [[not value] for (value,) in white]
