"""The parallel inverse of the autoregressive flow (ours): Eq. 9 as a fixed point, solved by Jacobi sweeps.

Legend: B batch, N tokens, D channels of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from farmer_ref.model.checks import evaluating
from farmer_ref.model.flow import AutoregressiveFlow, FlowBlock
from farmer_ref.model.precision import full_precision
from farmer_ref.support.errors import InputError, require

CONVERGED = 0.1  # a token has converged when a sweep changes it by at most this share of the tolerance


class JacobiReport(NamedTuple):
    """For each flow block, first to last: passes of its network, and the largest change accepted as converged."""

    sweeps: list[int]
    residual: list[float]


def inverse_jacobi(
    flow: AutoregressiveFlow,
    z: Tensor,
    labels: Tensor | None = None,
    *,
    tolerance: float = 1e-5,
    windows: Sequence[int | None] | None = None,
) -> tuple[Tensor, JacobiReport]:
    """Latents z (B,N,D) to x (B,N,D) in parallel, within `tolerance` of `flow.inverse`, and what it took   (Eq. 9).

    The tolerance is meant for values near 1 and can be no finer than float32 rounding. Errors of tokens and blocks
    accumulate, so a token counts as converged only when a sweep changes it by a tenth of the tolerance. That is no
    proof: on every flow that we tried, the result was within the tolerance.
    `windows`: for each block, first to last, how many tokens a sweep covers beyond the converged ones. 1 is the
    sequential inverse, which can be faster for a block that needs many sweeps; None covers all tokens.
    Raises `InputError` for latents, windows or tolerances that do not fit.

    >>> import torch
    >>> from farmer_ref import Farmer
    >>> from farmer_ref.model.jacobi import inverse_jacobi
    >>> model = Farmer.from_pretrained("digits")
    >>> z = model.prior.sample(torch.arange(10), generator=torch.Generator().manual_seed(0))
    >>> x, report = inverse_jacobi(model.flow, z)
    >>> torch.allclose(x, model.flow.inverse(z), atol=1e-5)
    True
    >>> max(report.sweeps) < 15  # passes of a block's network; the sequential inverse takes N - 1
    True
    """
    require(isinstance(flow, AutoregressiveFlow), "flow", type(flow).__name__, "AutoregressiveFlow")
    windows = windows or [None] * len(flow.blocks)
    if len(windows) != len(flow.blocks) or any(size is not None and size < 1 for size in windows):
        raise InputError(f"windows is {windows}; allowed: 1 or more, or None, for each of {len(flow.blocks)} blocks")
    if tolerance <= 0:
        raise InputError(f"tolerance is {tolerance}; allowed: above 0")
    flow.check_shape("z", z)
    if not len(z):
        return z, JacobiReport([0] * len(flow.blocks), [0.0] * len(flow.blocks))
    sweeps, residual = [], []
    with evaluating(flow):
        for block, window in zip(reversed(flow.blocks), reversed(windows), strict=True):
            z, block_sweeps, block_residual = _block_inverse(block, z, labels, tolerance, window)
            sweeps.insert(0, block_sweeps)
            residual.insert(0, block_residual)
    return z, JacobiReport(sweeps, residual)


@torch.no_grad()
def _block_inverse(
    block: FlowBlock, z: Tensor, labels: Tensor | None, tolerance: float, window: int | None
) -> tuple[Tensor, int, float]:
    """z (B,N,D) to x (B,N,D) of one block, with the number of sweeps and the largest residual   (Eq. 9).

    Eq. 9 is a fixed point, x = z / sigma(x) + mu(x), in which token i depends on earlier ones only. A Jacobi sweep
    evaluates the right-hand side for all tokens at once: after i sweeps the first i + 1 tokens are exact, and usually
    far fewer than N - 1 sweeps converge all of them (Song et al. 2021a). Starting from z takes as many sweeps as
    starting from zero or from a student's guess (`benchmarks.inverses`).
    """
    if window == 1:
        return block.inverse(z, labels), z.shape[1] - 1, 0.0
    z = block.flip_if_reversed(z)
    positions, last = block.embedded_positions(labels), z.shape[1] - 1
    cache = block.transformer.new_cache(last)
    run = partial(block.transformer, cache=cache)
    x = _as_guess(z)
    x[:, 0] = z[:, 0]  # token 1 passes through
    begin, sweeps, residual = 0, 0, 0.0
    while begin < last:  # invariant: x is final up to and including token `begin`
        end = min(begin + (window or last), last)
        # Keys and values of the final tokens stay in the cache; those of the last sweep's guesses are dropped.
        for layer in cache:
            layer.length = begin
        # One sweep: tokens begin .. end-1 give new values to the tokens that follow them.
        with full_precision(z):
            shift, log_scale = block.shift_and_log_scale(x[:, begin:end], positions[:, begin:end], run)
            new = z[:, begin + 1 : end + 1] * torch.exp(-log_scale) + shift
        changes = (new - x[:, begin + 1 : end + 1]).abs().amax((0, 2))  # (end-begin,), the largest of the batch
        moved = (~(changes <= tolerance * CONVERGED)).nonzero().flatten().tolist()
        # Tokens before the first that moved have converged. That token has converged too: all its inputs are final.
        still = moved[0] if moved else end - begin
        final = min(still + 1, end - begin)
        new[:, final:] = _as_guess(new[:, final:])
        x[:, begin + 1 : end + 1] = new
        residual = max(residual, changes[:still].max().item() if still else 0.0)
        begin, sweeps = begin + final, sweeps + 1
    x = block.flip_if_reversed(x)
    return (x if block.mixing is None else block.mixing.inverse(x)), sweeps, residual


def _as_guess(x: Tensor) -> Tensor:
    """x with non-finite values set to 0 and the rest clamped to 10^6.

    A sweep's guesses may be wild, and attention multiplies those that a token must not see by 0: 0 * NaN is NaN.
    """
    return torch.nan_to_num(x, 0.0, 0.0, 0.0).clamp(-1e6, 1e6)
