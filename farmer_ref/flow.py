"""The invertible autoregressive flow, AF (Eqs. 8-10), and its exact inverses, sequential and parallel.

Autoregressive: a token is changed by numbers that a network computes from the tokens before it. So the matrix of
derivatives dz/dx is triangular, its determinant the product of its diagonal, and log|det| a sum of log-scales.

Legend: B batch, N tokens, D channels of a token, W width. Log-determinants are per-image sums in nats, (B,).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from farmer_ref.errors import InputError
from farmer_ref.transformer import FixedCache, LayerCache, Transformer, full_precision, record_step

STANDSTILL = 0.1  # of the tolerance of a parallel inverse: see `AutoregressiveFlow.inverse_jacobi`


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

    def _factors(self) -> tuple[Tensor, Tensor]:
        unit = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_magnitude.exp())
        return self.lower.tril(-1) + unit, upper

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,N,D) to y (B,N,D) and log|det| (B,)."""
        with full_precision(x):
            lower, upper = self._factors()
            y = x @ (self.permutation @ lower @ upper).T
        return y, (x.shape[1] * self.log_magnitude.sum()).expand(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        """y (B,N,D) to x (B,N,D), by two triangular solves."""
        with full_precision(y):
            lower, upper = self._factors()
            columns = (y @ self.permutation).mT  # P is orthogonal
            columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
            return torch.linalg.solve_triangular(upper, columns, upper=True).mT


class FlowBlock(nn.Module):
    """One block of the AF: z_i = (x_i - mu(x_<i)) * sigma(x_<i) for i > 1, z_1 = x_1   (Eq. 8)

    mu and log sigma come from a causal transformer whose outputs are shifted right by one token. `reverse` reads the
    tokens back to front and restores the original order at the end. log sigma is bounded smoothly, max_log_scale *
    tanh(raw / max_log_scale) (ours: the paper gives no form; the shift mu has no bound). The last linear layer starts
    at zero, so a new block is the identity (up to `mixing`). With dropout the two directions are inverse to each other
    in evaluation mode only.
    """

    def __init__(
        self,
        tokens: int,
        channels: int,
        width: int,
        layers: int,
        head_dim: int,
        reverse: bool,
        max_log_scale: float | None,
        channel_mixing: bool = False,
        num_classes: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.reverse, self.max_log_scale = reverse, max_log_scale
        self.mixing = ChannelMixing(channels) if channel_mixing else None
        self.project_in = nn.Linear(channels, width)
        self.positions = nn.Parameter(torch.randn(tokens, width) * 0.02)  # of the image, not of the reading order
        self.class_embedding = None if num_classes is None else nn.Parameter(torch.randn(num_classes, width) * 0.02)
        self.transformer = Transformer(layers, width, head_dim, dropout)
        self.project_out = nn.Linear(width, 2 * channels)
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

    def shift_and_log_scale(
        self, x: Tensor, positions: Tensor, cache: Sequence[LayerCache] | None = None
    ) -> tuple[Tensor, Tensor]:
        """mu and log sigma (B,T,D) of the tokens that follow x (B,T,D)."""
        with full_precision(x):
            hidden = self.project_in(x) + positions
        hidden = self.transformer(hidden, cache)
        with full_precision(x):
            shift, log_scale = self.project_out(hidden.to(x.dtype)).chunk(2, -1)
            if self.max_log_scale is not None:
                log_scale = self.max_log_scale * torch.tanh(log_scale / self.max_log_scale)
        return shift, log_scale

    def all_shifts_and_log_scales(self, x: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """mu and log sigma (B,N,D) of the tokens of x (B,N,D) themselves, in reading order.

        Outputs are shifted right by one: token 1 passes through (shift 0, scale 1), what would follow the last token
        is dropped. (To feed N - 1 tokens instead is slower: N is the rounder number.)
        """
        parameters = self.shift_and_log_scale(x, self.embedded_positions(labels))
        return [F.pad(part[:, :-1], (0, 0, 1, 0)) for part in parameters]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B,N,D) to z (B,N,D) and log|det dz/dx| = sum_ij log sigma_ij (B,)   (Eqs. 8 and 10), in parallel."""
        logdet = x.new_zeros(x.shape[0])
        if self.mixing is not None:
            x, logdet = self.mixing(x)
        x = self.flip_if_reversed(x)
        shift, log_scale = self.all_shifts_and_log_scales(x, labels)
        z = (x - shift) * log_scale.exp()
        return self.flip_if_reversed(z), logdet + log_scale.sum((1, 2))

    @torch.no_grad()
    def inverse(self, z: Tensor, labels: Tensor | None = None, recorded: bool | None = None) -> Tensor:
        """z (B,N,D) to x (B,N,D): x_i = z_i / sigma(x_<i) + mu(x_<i), token by token with a cache   (Eq. 9).

        `recorded` (not given: on a GPU) makes all steps alike, and on a GPU records one and replays it.
        """
        z = self.flip_if_reversed(z)
        positions = self.embedded_positions(labels)
        x = z.clone()  # token 1 passes through
        with full_precision(z):
            if z.is_cuda if recorded is None else recorded:
                self._decode_recorded(x, z, positions)
            else:
                cache = self.transformer.new_cache(z.shape[1] - 1)
                for i in range(z.shape[1] - 1):
                    shift, log_scale = self.shift_and_log_scale(x[:, i : i + 1], positions[:, i : i + 1], cache)
                    x[:, i + 1] = z[:, i + 1] * torch.exp(-log_scale[:, 0]) + shift[:, 0]
        x = self.flip_if_reversed(x)
        return x if self.mixing is None else self.mixing.inverse(x)

    def _decode_recorded(self, x: Tensor, z: Tensor, positions: Tensor) -> None:
        """Fill in x (B,N,D), in reading order, from its first token on: one step, replayed N - 1 times."""
        steps = z.shape[1] - 1
        if not steps:
            return
        cache = FixedCache(self.transformer, z.shape[0], steps, like=z)
        here = torch.zeros(1, dtype=torch.long, device=z.device)  # the token that is known last

        def step() -> None:
            shift, log_scale = self.shift_and_log_scale(
                x.index_select(1, here), positions.index_select(1, here), cache.at(here)
            )
            after = here + 1
            x.index_copy_(1, after, z.index_select(1, after) * torch.exp(-log_scale) + shift)
            here.add_(1).remainder_(steps)

        step = record_step(step, z.device)
        here.zero_()
        for _ in range(steps):
            step()

    @torch.no_grad()
    def inverse_jacobi(
        self, z: Tensor, labels: Tensor | None = None, tolerance: float = 1e-5, window: int | None = None
    ) -> tuple[Tensor, int, float]:
        """z (B,N,D) to x (B,N,D) in parallel; with it the sweeps, and the last change of a number   (Eq. 9).

        Eq. 9 is a fixed point, x = z / sigma(x) + mu(x), in which token i depends on earlier ones only. A Jacobi sweep
        evaluates the right-hand side for all tokens at once: i sweeps make the first i + 1 tokens exact, and usually
        far fewer than N - 1 bring all of them to a stand (Song et al. 2021). It starts from z: from zero or from a
        student's guess takes as many (`benchmarks.inverses`). Tokens that are final are not swept again; the next ones
        follow them in a window. `tolerance` and `window` are those of `AutoregressiveFlow.inverse_jacobi`.
        """
        if window == 1:
            return self.inverse(z, labels), z.shape[1] - 1, 0.0
        z = self.flip_if_reversed(z)
        positions, last = self.embedded_positions(labels), z.shape[1] - 1
        cache = self.transformer.new_cache(last)
        x = _as_guess(z)
        x[:, 0] = z[:, 0]  # token 1 passes through
        begin, sweeps, worst = 0, 0, 0.0
        while begin < last:  # x is final up to and including token `begin`
            end = min(begin + (window or last), last)
            for layer in cache:
                layer.length = begin
            with full_precision(z):
                shift, log_scale = self.shift_and_log_scale(x[:, begin:end], positions[:, begin:end], cache)
                new = z[:, begin + 1 : end + 1] * torch.exp(-log_scale) + shift
            changes = (new - x[:, begin + 1 : end + 1]).abs().amax((0, 2))
            moved = (~(changes <= tolerance * STANDSTILL)).nonzero().flatten().tolist()
            # Tokens before the first that moved stood still; it has moved for the last time, as all it reads is final.
            still = moved[0] if moved else end - begin
            final = min(still + 1, end - begin)
            new[:, final:] = _as_guess(new[:, final:])
            x[:, begin + 1 : end + 1] = new
            worst = max(worst, changes[:still].max().item() if still else 0.0)
            begin, sweeps = begin + final, sweeps + 1
        x = self.flip_if_reversed(x)
        return (x if self.mixing is None else self.mixing.inverse(x)), sweeps, worst


def _as_guess(x: Tensor) -> Tensor:
    """x with what is not finite at 0 and the rest within 10^6.

    A sweep's guesses may be wild, and attention multiplies those that a token must not see by 0: 0 * NaN is NaN.
    """
    return torch.nan_to_num(x, 0.0, 0.0, 0.0).clamp(-1e6, 1e6)


class JacobiReport(NamedTuple):
    """Of each flow block, first to last: passes of its network, and the largest change taken for standing still."""

    sweeps: list[int]
    residual: list[float]


class Flow(nn.Module, ABC):
    """n invertible blocks, Z = F_n o ... o F_1 (X): what the autoregressive and the coupling flow share."""

    def __init__(
        self,
        tokens: int,
        channels: int,
        blocks: int,
        layers: int,
        width: int,
        head_dim: int = 64,
        max_log_scale: float | None = 2.5,
        channel_mixing: bool = False,
        num_classes: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.tokens, self.channels = tokens, channels
        self.blocks = nn.ModuleList(
            self.new_block(
                t,
                tokens=tokens,
                channels=channels,
                width=width,
                layers=layers,
                head_dim=head_dim,
                max_log_scale=max_log_scale,
                channel_mixing=channel_mixing,
                num_classes=num_classes,
                dropout=dropout,
            )
            for t in range(blocks)
        )

    @abstractmethod
    def new_block(self, number: int, **settings: Any) -> nn.Module:
        """Block `number`, from 0 on."""

    @abstractmethod
    def inverse(
        self, z: Tensor, labels: Tensor | None = None, recorded: bool | None = None, progress: bool = False
    ) -> Tensor:
        """Latents z (B,N,D) to x (B,N,D), exact: what `forward` maps to z."""

    def check_shape(self, name: str, tokens: Tensor) -> None:
        """Raise `InputError` where tokens are not (B,N,D)."""
        if tokens.dim() != 3 or tokens.shape[1:] != (self.tokens, self.channels):
            raise InputError(
                f"{name} has shape {tuple(tokens.shape)}; allowed: (batch, {self.tokens}, {self.channels})"
            )

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B,N,D) to latents z (B,N,D) and log|det dz/dx| (B,), nats per image   (Eq. 10)."""
        self.check_shape("x", x)
        logdet = x.new_zeros(x.shape[0])
        for block in self.blocks:
            x, block_logdet = block(x, labels)
            logdet = logdet + block_logdet
        return x, logdet


class AutoregressiveFlow(Flow):
    """n blocks with alternating token order, Z = F_n o ... o F_1 (X)   (Eqs. 8-10)

    The first block reads the tokens in image order, the second back to front, and so on.
    """

    def new_block(self, number: int, **settings: Any) -> FlowBlock:
        """Block `number`, from 0 on."""
        return FlowBlock(reverse=number % 2 == 1, **settings)

    def inverse(
        self, z: Tensor, labels: Tensor | None = None, recorded: bool | None = None, progress: bool = False
    ) -> Tensor:
        """Latents z (B,N,D) to x (B,N,D), exact: n blocks of N - 1 sequential steps   (Eq. 9).

        On a GPU the step is recorded as a CUDA graph, unless `recorded` is False. In float32 at least, under autocast
        too.
        """
        self.check_shape("z", z)
        for block in tqdm(self.blocks[::-1], desc="flow", unit="block", leave=False, disable=not progress):
            z = block.inverse(z, labels, recorded)
        return z

    def inverse_jacobi(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        tolerance: float = 1e-5,
        windows: Sequence[int | None] | None = None,
    ) -> tuple[Tensor, JacobiReport]:
        """Latents z (B,N,D) to x (B,N,D) in parallel, within `tolerance` of `inverse`, and what it took   (Eq. 9).

        The tolerance is for numbers near 1, and no finer than the rounding of float32. Errors of tokens and blocks
        add up, so a token counts as standing still when a sweep changes it by a tenth of the tolerance at most. That
        is no proof: measured, the result was within the tolerance on all flows that we tried.
        `windows`: for each block, first to last, how many tokens a sweep takes beyond the final ones: 1 is the
        sequential inverse, which can be quicker for a block that needs many sweeps; None takes all.
        """
        windows = windows or [None] * len(self.blocks)
        if len(windows) != len(self.blocks) or any(size is not None and size < 1 for size in windows):
            raise InputError(
                f"windows is {windows}; allowed: 1 or more, or None, for each of {len(self.blocks)} blocks"
            )
        if tolerance <= 0:
            raise InputError(f"tolerance is {tolerance}; allowed: above 0")
        self.check_shape("z", z)
        taken = []
        for block, window in zip(reversed(self.blocks), reversed(windows), strict=True):
            z, *report = block.inverse_jacobi(z, labels, tolerance, window)
            taken.append(report)
        sweeps, residual = zip(*reversed(taken), strict=True)
        return z, JacobiReport(list(sweeps), list(residual))

    @classmethod
    def from_tarflow(cls, state_dict: dict[str, Tensor], head_dim: int = 64) -> AutoregressiveFlow:
        """The flow of the public TARFlow release (github.com/apple/ml-tarflow) from its state dict.

        Same latents and inverse; log|det| is the sum over N D where TARFlow's is the mean. Its network gives
        -log sigma, so those rows of the last layer change sign; log sigma is unbounded there; the missing label is
        the mean of the class embeddings. Its `var` buffer belongs to the prior, not to the map: the public model
        samples with `flow.inverse(z * state_dict["var"].sqrt(), labels)`.
        """
        if "blocks.0.proj_in.weight" not in state_dict:
            raise InputError(
                f"state_dict has {len(state_dict)} entries and no blocks.0.proj_in.weight; allowed: TARFlow's"
            )
        width, channels = state_dict["blocks.0.proj_in.weight"].shape
        if width % head_dim:
            raise InputError(f"head_dim is {head_dim}; allowed: a divisor of the width, {width}")
        if state_dict["blocks.0.proj_out.weight"].shape[0] != 2 * channels:
            raise InputError("state_dict is of a volume-preserving TARFlow (nvp=False); allowed: nvp=True")
        tokens = state_dict["blocks.0.pos_embed"].shape[0]
        blocks = 1 + max(int(name.split(".")[1]) for name in state_dict if name.startswith("blocks."))
        layers = 1 + max(int(name.split(".")[3]) for name in state_dict if name.startswith("blocks.0.attn_blocks."))
        classes = state_dict.get("blocks.0.class_embed")
        flow = cls(
            tokens,
            channels,
            blocks,
            layers,
            width,
            head_dim=head_dim,
            max_log_scale=None,
            num_classes=None if classes is None else classes.shape[0],
        )
        renamed = {}
        for name, value in state_dict.items():
            if name == "var" or name.endswith("attn_mask"):
                continue
            for pattern, ours in _TARFLOW_NAMES:
                name = re.sub(pattern, ours, name)
            if ".project_out." in name:
                negative_log_scale, shift = value.chunk(2)
                value = torch.cat([shift, -negative_log_scale])
            renamed[name] = value.squeeze(1) if name.endswith("class_embedding") else value
        flow.to(renamed["blocks.0.project_in.weight"].dtype).load_state_dict(renamed)
        return flow


_TARFLOW_NAMES = (
    (r"\.proj_in\.", ".project_in."),
    (r"\.proj_out\.", ".project_out."),
    (r"\.pos_embed$", ".positions"),
    (r"\.class_embed$", ".class_embedding"),
    (r"\.attn_blocks\.", ".transformer.layers."),
    (r"\.attention\.norm\.", ".attention_norm."),
    (r"\.attention\.qkv\.", ".attention_in."),
    (r"\.attention\.proj\.", ".attention_out."),
    (r"\.mlp\.norm\.", ".mlp_norm."),
    (r"\.mlp\.main\.0\.", ".mlp_in."),
    (r"\.mlp\.main\.2\.", ".mlp_out."),
)
