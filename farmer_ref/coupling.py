"""An affine coupling flow, the alternative to the autoregressive one behind the same interface (Table 4).

In each block one half of the numbers stays as it is and says how the other half is shifted and scaled (RealNVP, Dinh et
al. 2017). With a transformer over the patches, which sees all tokens, this is Jet's idea (Kolesnikov et al. 2024). Both
directions take one parallel pass per block: no sequential inverse, and none is needed. What is paid is that a block
transforms half of the numbers, by what the other half says.

Legend: B batch, N tokens, D channels of a token. Log-determinants are per-image sums in nats, (B,).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from farmer_ref.flow import Flow, FlowBlock


class CouplingBlock(nn.Module):
    """z = x where `kept`, else (x - mu(x_kept)) * sigma(x_kept): the network of a block of the AF, seeing all tokens.

    `half` numbers the halves in turn: even blocks split the channels of every token (first or second half), odd ones
    the tokens (every other one), as Jet does.
    """

    kept: Tensor

    def __init__(self, half: int, tokens: int, channels: int, **network: Any):
        super().__init__()
        self.network = FlowBlock(tokens, channels, reverse=False, **network)
        self.network.transformer.bidirectional()
        if half % 2 == 0:
            kept = (torch.arange(channels) < channels // 2).expand(tokens, -1)
        else:
            kept = (torch.arange(tokens) % 2 == 0)[:, None].expand(-1, channels)
        kept = kept if half % 4 < 2 else ~kept
        self.register_buffer("kept", kept.clone(), persistent=False)  # (N,D)

    def _shift_and_log_scale(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """mu and log sigma (B,N,D), 0 where `kept`, of x or of z: they are equal where it matters."""
        parts = self.network.shift_and_log_scale(x * self.kept, self.network.embedded_positions(labels))
        shift, log_scale = (part * ~self.kept for part in parts)
        return shift, log_scale

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B,N,D) to z (B,N,D) and log|det dz/dx| (B,)."""
        logdet = x.new_zeros(x.shape[0])
        if self.network.mixing is not None:
            x, logdet = self.network.mixing(x)
        shift, log_scale = self._shift_and_log_scale(x, labels)
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
    mixing is available to it, too, and matters more here: without it the halves of the channels never change.
    """

    def new_block(self, number: int, **settings: Any) -> CouplingBlock:
        """Block `number`, from 0 on."""
        return CouplingBlock(number, **settings)

    def inverse(
        self, z: Tensor, labels: Tensor | None = None, recorded: bool | None = None, progress: bool = False
    ) -> Tensor:
        """Latents z (B,N,D) to x (B,N,D), exact, one pass per block: nothing to record, no progress to show."""
        self.check_shape("z", z)
        for block in reversed(self.blocks):
            z = block.inverse(z, labels)
        return z
