"""An affine coupling flow, the alternative to the autoregressive one behind the same interface (Table 4).

In each block, one half of the values stays as it is and determines how the other half is shifted and scaled (RealNVP,
Dinh et al. 2017). With a transformer over the patches, which sees all tokens, this is Jet's idea (Kolesnikov et al.
2025). Both directions take one parallel pass per block; the price is that a block transforms only half of the values.

Legend: B batch, N tokens, D channels of a token. Log-determinants are per-image sums in nats, (B,).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from farmer_ref.model.flow import Flow, FlowBlock
from farmer_ref.model.transformer import TrainingPass


class CouplingBlock(nn.Module):
    """z = x where `kept`, else (x - mu(x_kept)) * sigma(x_kept): the network of an AF block, seeing all tokens.

    `number` selects the half that is kept: even blocks split the channels of every token (first or second half), odd
    ones split the tokens (every other one), as Jet does.
    """

    kept: Tensor

    def __init__(self, tokens: int, channels: int, *, number: int, **network: Any):
        super().__init__()
        self.network = FlowBlock(tokens, channels, causal=False, **network)
        if number % 2 == 0:
            kept = (torch.arange(channels) < channels // 2).expand(tokens, -1)
        else:
            kept = (torch.arange(tokens) % 2 == 0)[:, None].expand(-1, channels)
        kept = kept if number % 4 < 2 else ~kept
        self.register_buffer("kept", kept.clone(), persistent=False)  # (N,D)

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
        shift, log_scale = self._shift_and_log_scale(z, labels)
        x = z * torch.exp(-log_scale) + shift
        return x if self.network.mixing is None else self.network.mixing.inverse(x)


class CouplingFlow(Flow):
    """n coupling blocks, Z = F_n o ... o F_1 (X), with the interface of `AutoregressiveFlow`.

    The halves alternate: first the channels, then the tokens, then the other halves of each. Glow's learned channel
    mixing is available here too, and matters more: without it the halves of the channels never change.
    """

    def __init__(self, tokens: int, channels: int, *, blocks: int, **options: Any):
        """`blocks` is their number n; `options` are those of `FlowBlock`, the same for all blocks."""
        made = (CouplingBlock(tokens, channels, number=t, **options) for t in range(blocks))
        super().__init__(tokens, channels, blocks=made)
