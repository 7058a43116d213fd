"""The parallel inverse against the sequential one. Float64, no weight at zero."""

import math

import pytest
import torch
from conftest import VARIANTS, mild_flow, small_flow
from conftest import some_tokens as tokens

from farmer_ref.model import jacobi
from farmer_ref.model.jacobi import inverse_jacobi
from farmer_ref.support.errors import InputError


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float64, 1e-3), (torch.float32, 1e-4)])
def test_the_parallel_inverse_equals_the_sequential_one(variant, dtype, tolerance):
    flow = mild_flow(dtype, **variant)
    labels = torch.tensor([0, 3, -1]) if "num_classes" in variant else None
    z, _ = flow(tokens(count=12).to(dtype), labels)
    exact = flow.inverse(z, labels)
    parallel, report = inverse_jacobi(flow, z, labels, tolerance=tolerance)
    assert (parallel - exact).abs().max() <= tolerance
    assert len(report.sweeps) == len(report.residual) == 3
    assert max(report.sweeps) <= 11 and max(report.residual) <= tolerance / 10
    if tolerance == 1e-3:
        assert sum(report.sweeps) < 3 * 11  # fewer than one per token
        assert (parallel - exact).abs().max() > 0  # and not exact to the last digit: the tolerance is used


def test_windows_choose_the_method_of_each_block():
    flow = mild_flow()
    z, _ = flow(tokens(count=12))
    exact = flow.inverse(z)
    for windows in ([1, 1, 1], [1, 3, None], [5, 5, 5], [100, None, 2]):
        parallel, report = inverse_jacobi(flow, z, tolerance=1e-9, windows=windows)
        assert (parallel - exact).abs().max() <= 1e-9
        assert all(sweeps == 11 for window, sweeps in zip(windows, report.sweeps, strict=True) if window == 1)


def test_a_token_has_converged_when_it_has_in_every_image():
    """The first image's network says nothing: after one sweep, all its tokens stay as they are."""
    flow = mild_flow(blocks=1)
    block = flow.blocks[0]
    network, share = block.shift_and_log_scale, torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1)
    block.shift_and_log_scale = lambda x, positions, run: [part * share for part in network(x, positions, run)]
    z, _ = flow(tokens(count=12))
    assert torch.equal(z[0], tokens(count=12)[0])
    assert (inverse_jacobi(flow, z, tolerance=1e-9)[0] - tokens(count=12)).abs().max() <= 1e-9


def test_the_residual_is_the_largest_change_that_was_accepted():
    """Tokens 2 and 3 move by less than a tenth of the tolerance, the others by more, and in the first sweep alone."""
    block = small_flow(5, blocks=1).blocks[0]
    shifts = torch.tensor([2e-5, 1e-5, 1.0, 1.0], dtype=torch.float64).view(1, 4, 1).expand(3, 4, 3)
    block.shift_and_log_scale = lambda x, positions, run: (shifts[:, -x.shape[1] :], torch.zeros_like(x))
    _, sweeps, residual = jacobi._block_inverse(block, tokens(), None, 1e-3, None)
    assert sweeps == 2 and residual == pytest.approx(2e-5, rel=1e-9)


@pytest.mark.parametrize("broken", [False, True])
def test_a_sweep_survives_a_guess_that_overflows(monkeypatch, broken):
    """An exact inverse that is finite throughout, on the way to which the first sweeps are not.

    A token that overflows must not spoil those before it: attention multiplies what is hidden by 0, and 0 * NaN is NaN.
    """
    flow = mild_flow(channels=1, blocks=1, max_log_scale=None)
    block = flow.blocks[0]
    network = block.shift_and_log_scale

    def explosive(x, positions, run):
        shift, log_scale = network(x, positions, run)
        return shift, log_scale + 100 * x  # from a very negative guess of x, exp(-log sigma) overflows

    block.shift_and_log_scale = explosive
    if broken:
        monkeypatch.setattr(jacobi, "_as_guess", torch.clone)
    x = 0.01 * tokens(count=12, channels=1)
    x[:, 0], x[:, 1] = 1.0, -0.5
    z, _ = block(x)
    assert z[:, 1].max() < -1e30  # the first guess of token 2, which is -0.5
    parallel, _ = inverse_jacobi(flow, z, tolerance=1e-9)
    assert torch.allclose(block.inverse(z), x, atol=1e-3)  # e^50 magnifies rounding
    assert torch.allclose(parallel, x, atol=1e-3) != broken


def test_what_is_not_finite_stays_so():
    """A parallel inverse must not hide what the sequential one would show."""
    flow = mild_flow()
    z = tokens(count=12)
    z[0, 4, 1] = math.nan
    exact, (parallel, _) = flow.inverse(z), inverse_jacobi(flow, z)
    assert torch.equal(exact.isfinite(), parallel.isfinite())


@pytest.mark.parametrize("windows", [[1, 2], [0, 1, 1]])
def test_wrong_windows_are_named(windows):
    with pytest.raises(InputError, match="allowed: 1 or more, or None, for each of 3 blocks"):
        inverse_jacobi(small_flow(), tokens(), windows=windows)
    with pytest.raises(InputError, match="tolerance is 0"):
        inverse_jacobi(small_flow(), tokens(), tolerance=0)


def test_dropout_is_off_in_training_mode():
    flow = mild_flow(dropout=0.5).train()
    assert torch.allclose(inverse_jacobi(flow, tokens(count=12))[0], flow.inverse(tokens(count=12)), atol=1e-4)
    assert flow.training and flow.blocks[0].transformer.training
