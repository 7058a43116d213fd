"""The invertible autoregressive flow, AF (Eqs. 8-10), and its exact inverse.

Autoregressive: each token is shifted and scaled by numbers that a network computes from the tokens before it. So the
Jacobian dz/dx is triangular, its determinant is the product of its diagonal, and log|det| is a sum of log-scales.

Legend: B batch, N tokens, D channels of a token, W width. Log-determinants are per-image sums in nats, (B,).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from farmer_ref.model.linear import Linear
from farmer_ref.model.precision import full_precision, without_autocast
from farmer_ref.model.stepper import Step, stepper
from farmer_ref.model.transformer import TrainingPass, Transformer
from farmer_ref.support.errors import InputError


class ChannelMixing(nn.Module):
    """y_i = A x_i for every token i: Glow's invertible 1x1 convolution (Kingma and Dhariwal 2018, Eq. 10).

    A = P L (U + diag s) with P a fixed permutation, L unit lower and U strictly upper triangular, the signs of s
    fixed; log|det| = N * sum log|s|. It starts at a random rotation. One of two cures (the other: a patch basis) for
    the blind spot of an affine AF, each of whose blocks is elementwise inside a token.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int):
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels)).Q
        permutation, lower, upper = torch.linalg.lu(rotation)
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", upper.diagonal().sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_magnitude = nn.Parameter(upper.diagonal().abs().log())

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """P, L and U + diag s (D,D)."""
        lower, upper, log_magnitude = (weight.to(dtype) for weight in (self.lower, self.upper, self.log_magnitude))
        unit = torch.eye(len(self.sign), dtype=dtype, device=lower.device)
        upper = upper.triu(1) + torch.diag(self.sign * log_magnitude.exp())
        return self.permutation.to(dtype), lower.tril(-1) + unit, upper

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,N,D) to y (B,N,D) and log|det| (B,)."""
        with full_precision(x):
            permutation, lower, upper = self._factors(x.dtype)
            y = x @ (permutation @ lower @ upper).T
        return y, (x.shape[1] * self.log_magnitude.sum(dtype=x.dtype)).expand(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        """y (B,N,D) to x (B,N,D), by two triangular solves."""
        with full_precision(y):
            permutation, lower, upper = self._factors(y.dtype)
            columns = (y @ permutation).mT  # P is orthogonal
            columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
            return torch.linalg.solve_triangular(upper, columns, upper=True).mT


class FlowBlock(nn.Module):
    """One block of the AF: z_i = (x_i - mu(x_<i)) * sigma(x_<i) for i > 1, z_1 = x_1   (Eq. 8)

    mu and log sigma come from a causal transformer whose outputs are shifted right by one token. `reverse` reads the
    tokens back to front and restores the original order at the end. log sigma is bounded smoothly, max_log_scale *
    tanh(raw / max_log_scale) (ours: the paper gives no form; the shift mu has no bound). The last linear layer starts
    at zero, so a new block is the identity (up to `mixing`). With dropout, the two directions are inverse to each
    other in evaluation mode only. Without the causal mask they never are: `causal=False` is for the student and for
    coupling blocks, which use the network alone.
    """

    def __init__(
        self,
        tokens: int,
        channels: int,
        *,
        layers: int,
        width: int,
        head_dim: int = 64,
        reverse: bool = False,
        causal: bool = True,
        max_log_scale: float | None = 2.5,
        channel_mixing: bool = False,
        num_classes: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.reverse, self.max_log_scale = reverse, max_log_scale
        self.mixing = ChannelMixing(channels) if channel_mixing else None
        self.project_in = Linear(channels, width)
        self.positions = nn.Parameter(torch.randn(tokens, width) * 0.02)  # of the image, not of the reading order
        self.class_embedding = None if num_classes is None else nn.Parameter(torch.randn(num_classes, width) * 0.02)
        self.transformer = Transformer(layers, width, head_dim=head_dim, causal=causal, dropout=dropout)
        self.project_out = Linear(width, 2 * channels)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def flip_if_reversed(self, tokens: Tensor) -> Tensor:
        """Image order to reading order, or back."""
        return tokens.flip(-2) if self.reverse else tokens

    def embedded_positions(self, labels: Tensor | None) -> Tensor:
        """Positions in reading order, plus the label if this flow sees it: (1,N,W) or (B,N,W)."""
        positions = self.flip_if_reversed(self.positions).unsqueeze(0)
        if self.class_embedding is None:
            return positions
        null = self.class_embedding.mean(0)  # no label: the mean of all, as in TARFlow
        if labels is None:
            return positions + null
        embedded = torch.where(labels[:, None] < 0, null, self.class_embedding[labels.clamp(min=0)])
        return positions + embedded[:, None]

    def shift_and_log_scale(self, x: Tensor, positions: Tensor, run: Step | None = None) -> tuple[Tensor, Tensor]:
        """mu and log sigma (B,T,D) of the tokens that follow x (B,T,D); `run`: the transformer, or a step of it."""
        with without_autocast(x):
            hidden = self.project_in(x.to(positions.dtype)) + positions  # (B,T,W), in the weights' dtype
        hidden = (run or self.transformer)(hidden)
        with without_autocast(x):
            shift, log_scale = self.project_out(hidden.to(positions.dtype)).to(x.dtype).chunk(2, -1)
            if self.max_log_scale is not None:
                log_scale = self.max_log_scale * torch.tanh(log_scale / self.max_log_scale)
        return shift, log_scale

    def all_shifts_and_log_scales(
        self, x: Tensor, labels: Tensor | None = None, training: TrainingPass | None = None
    ) -> tuple[Tensor, Tensor]:
        """mu and log sigma (B,N,D) of the tokens of x (B,N,D) themselves, all in reading order.

        Outputs are shifted right by one: token 1 passes through (shift 0, scale 1), and what would follow the last
        token is dropped. (Feeding N - 1 tokens instead is slower: N is the rounder number.)
        """
        run = partial(self.transformer, training=training)
        shift, log_scale = self.shift_and_log_scale(x, self.embedded_positions(labels), run)
        return _shifted_right(shift), _shifted_right(log_scale)

    def forward(
        self, x: Tensor, labels: Tensor | None = None, training: TrainingPass | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B,N,D) to z (B,N,D) and log|det dz/dx| = sum_ij log sigma_ij (B,)   (Eqs. 8 and 10), in parallel."""
        logdet = x.new_zeros(x.shape[0])
        if self.mixing is not None:
            x, logdet = self.mixing(x)
        x = self.flip_if_reversed(x)
        shift, log_scale = self.all_shifts_and_log_scales(x, labels, training)
        z = (x - shift) * log_scale.exp()
        return self.flip_if_reversed(z), logdet + log_scale.sum((1, 2))

    @torch.no_grad()
    def inverse(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z (B,N,D) to x (B,N,D): x_i = z_i / sigma(x_<i) + mu(x_<i), token by token   (Eq. 9)."""
        z = self.flip_if_reversed(z)
        positions = self.embedded_positions(labels)
        first, *others = z.split(1, 1)  # each (B,1,D)
        tokens = [first]  # token 1 passes through
        with full_precision(z), torch.inference_mode():  # for one image, an eighth faster than without gradients alone
            step = stepper(self.transformer, z.shape[1] - 1, like=z.to(positions.dtype))
            for z_next, position in zip(others, positions.split(1, 1), strict=False):
                shift, log_scale = self.shift_and_log_scale(tokens[-1], position, step)
                tokens.append(z_next * torch.exp(-log_scale) + shift)
        x = self.flip_if_reversed(torch.cat(tokens, 1))
        return x if self.mixing is None else self.mixing.inverse(x)


class Flow(nn.Module):
    """n invertible blocks, Z = F_n o ... o F_1 (X), of either kind; (B,N,D) throughout   (Eq. 1)."""

    def __init__(self, tokens: int, channels: int, *, blocks: Iterable[nn.Module]):
        super().__init__()
        self.tokens, self.channels, self.blocks = tokens, channels, nn.ModuleList(blocks)

    def forward(
        self, x: Tensor, labels: Tensor | None = None, training: TrainingPass | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B,N,D) to latents z (B,N,D) and log|det dz/dx| (B,), nats per image   (Eq. 10)."""
        self.check_shape("x", x)
        logdet = x.new_zeros(x.shape[0])
        for block in self.blocks:
            x, block_logdet = block(x, labels, training)
            logdet = logdet + block_logdet
        return x, logdet

    def inverse(self, z: Tensor, labels: Tensor | None = None, *, progress: bool = False) -> Tensor:
        """Latents z (B,N,D) to x (B,N,D), exact, last block first; in float32 at least, even under autocast."""
        self.check_shape("z", z)
        for block in tqdm(self.blocks[::-1], desc="flow", unit="block", leave=False, disable=not progress):
            z = block.inverse(z, labels)
        return z

    def check_shape(self, name: str, tokens: Tensor) -> None:
        """Raise `InputError` where tokens are not (B,N,D)."""
        if tokens.dim() != 3 or tokens.shape[1:] != (self.tokens, self.channels):
            raise InputError(
                f"{name} has shape {tuple(tokens.shape)}; allowed: (batch, {self.tokens}, {self.channels})"
            )


class AutoregressiveFlow(Flow):
    """n blocks with alternating token order: image order first, then back to front, and so on   (Eqs. 8-10).

    >>> import torch
    >>> from farmer_ref import AutoregressiveFlow
    >>> flow = AutoregressiveFlow(16, 4, blocks=2, layers=1, width=32, head_dim=16)  # N = 16, D = 4
    >>> x = torch.randn(3, 16, 4)
    >>> z, logdet = flow(x)
    >>> z.shape, logdet.shape, torch.allclose(flow.inverse(z), x, atol=1e-5)
    (torch.Size([3, 16, 4]), torch.Size([3]), True)
    """

    def __init__(self, tokens: int, channels: int, *, blocks: int, **options: Any):
        """`blocks` is their number n; `options` are those of `FlowBlock`, the same for all blocks."""
        self.options = {"blocks": blocks, **options}  # what a student of the same shape is made with
        made = (FlowBlock(tokens, channels, reverse=t % 2 == 1, **options) for t in range(blocks))
        super().__init__(tokens, channels, blocks=made)


def _shifted_right(outputs: Tensor) -> Tensor:
    """Outputs (B,N,D) one token later: zeros first, and the last one dropped."""
    return F.pad(outputs[:, :-1], (0, 0, 1, 0))
