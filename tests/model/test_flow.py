"""Eqs. 8-10: the flow's two directions, its log-determinant, its causality. Float64, no weight at zero."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import jacobian, logdet_error, mild_flow, round_trip_error, small_coupling, small_flow
from conftest import some_tokens as tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from farmer_ref.model import jacobi, transformer
from farmer_ref.model.flow import ChannelMixing
from farmer_ref.model.jacobi import inverse_jacobi
from farmer_ref.support.errors import InputError

VARIANTS = [{}, {"channel_mixing": True}, {"max_log_scale": None}, {"num_classes": 4}]
BOTH = pytest.mark.parametrize("make", [small_flow, small_coupling])


@BOTH
@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_and_logdet(make, variant):
    flow = make(**variant)
    assert (flow(tokens())[0] - tokens()).abs().max() > 0.1  # not the identity
    assert round_trip_error(flow, tokens()) <= 1e-9
    assert logdet_error(flow, tokens()) <= 1e-8


@BOTH
@given(count=st.integers(2, 9), channels=st.integers(1, 5), blocks=st.integers(1, 4), batch=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_any_shape(make, count, channels, blocks, batch):
    flow = make(count, channels, blocks)
    assert round_trip_error(flow, tokens(batch, count, channels)) <= 1e-9
    assert logdet_error(flow, tokens(batch, count, channels)) <= 1e-8


@pytest.mark.parametrize("reverse", [False, True])
def test_jacobian_of_a_block_is_block_triangular(reverse):
    """Token i depends on itself elementwise and on the tokens read before it: that is what makes Eq. 10 a sum."""
    block = small_flow(blocks=2).blocks[int(reverse)]
    matrix = jacobian(lambda x: block(x)[0], tokens(1)).view(5, 3, 5, 3)
    for i in range(5):
        for j in range(5):
            later = j < i if reverse else j > i
            part = matrix[i, :, j]
            if i == j:
                assert torch.equal(part, torch.diag(part.diagonal()))
            else:
                assert (part.abs().max() == 0) == later


def test_first_token_passes_through():
    block = small_flow(blocks=2).blocks
    z, _ = block[0](tokens())
    assert torch.equal(z[:, 0], tokens()[:, 0])
    z, _ = block[1](tokens())
    assert torch.equal(z[:, -1], tokens()[:, -1])


def test_a_new_flow_is_the_identity():
    from farmer_ref.model.flow import AutoregressiveFlow

    z, logdet = AutoregressiveFlow(5, 3, blocks=2, layers=1, width=16, head_dim=8).double()(tokens())
    assert torch.equal(z, tokens()) and torch.equal(logdet, torch.zeros(3, dtype=torch.float64))


def test_log_scale_is_bounded():
    flow = small_flow(blocks=1, max_log_scale=0.5)
    flow.blocks[0].project_out.weight.data *= 1e4
    logdet = flow(tokens())[1]
    assert logdet.abs().max() <= 0.5 * 4 * 3 + 1e-9


@pytest.mark.parametrize("broken", [False, True])
def test_a_broken_mask_is_noticed(monkeypatch, broken):
    """The checks above must fail when attention sees the future; otherwise they check nothing."""
    if broken:
        attention = F.scaled_dot_product_attention
        monkeypatch.setattr(
            transformer.F, "scaled_dot_product_attention", lambda q, k, v, attn_mask, is_causal: attention(q, k, v)
        )
    flow = small_flow()
    assert (round_trip_error(flow, tokens()) > 1e-3) == broken
    assert (logdet_error(flow, tokens()) > 1e-3) == broken


def test_channel_mixing_is_the_stated_matrix():
    torch.manual_seed(0)
    mixing = ChannelMixing(4).double()
    start = torch.eye(4, dtype=torch.float64)
    rotation = mixing(start[None])[0][0].T
    assert torch.allclose(rotation @ rotation.T, start, atol=1e-5)  # a rotation at the start
    for parameter in mixing.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    y, logdet = mixing(start[None])
    exact = 4 * torch.linalg.slogdet(y[0].T).logabsdet
    assert torch.allclose(logdet, exact.expand(1), atol=1e-12)
    assert torch.allclose(mixing.inverse(y), start[None], atol=1e-9)


def test_labels_change_a_conditional_flow_and_null_is_their_mean():
    flow = small_flow(num_classes=4)
    with_label = flow(tokens(), torch.tensor([0, 1, 2]))[0]
    without = flow(tokens(), None)[0]
    assert (with_label - without).abs().max() > 1e-4
    assert torch.equal(flow(tokens(), torch.full((3,), -1))[0], without)
    labels = torch.tensor([0, -1, 2])
    assert torch.allclose(flow.inverse(flow(tokens(), labels)[0], labels), tokens(), atol=1e-9)


@BOTH
def test_wrong_shape_is_named(make):
    with pytest.raises(InputError, match=r"x has shape \(3, 4, 3\); allowed: \(batch, 5, 3\)"):
        make()(tokens(count=4))
    for inverse in (make().inverse, partial(inverse_jacobi, small_flow())):
        with pytest.raises(InputError, match=r"z has shape \(3, 4, 3\); allowed: \(batch, 5, 3\)"):
            inverse(tokens(count=4))


def test_bfloat16_autocast_keeps_the_affine_map_exact(fixed_steps):
    """Under autocast the transformer runs in bfloat16, but the densities around it stay in float32."""
    flow = small_flow().float()
    x = tokens().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, logdet = flow(x)
        back = flow.inverse(z)
        exact = [inverse_jacobi(flow, z)[0]]
        fixed_steps()
        exact.append(flow.inverse(z))
    for inverse in exact:
        assert torch.allclose(inverse, back, atol=1e-4)  # the inverses are in float32
    assert z.dtype == logdet.dtype == torch.float32
    exact_logdet = flow(x)[1]
    assert 0 < (logdet - exact_logdet).abs().max() < 0.1
    assert (back - x).abs().max() < 0.5  # the forward pass was not


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_fixed_shapes_change_nothing(variant, fixed_steps):
    """The step that a GPU records, against the cache that grows."""
    flow = mild_flow(**variant)
    labels = torch.tensor([0, 3, -1]) if "num_classes" in variant else None
    z, _ = flow(tokens(count=12), labels)
    growing = flow.inverse(z, labels)
    fixed_steps()
    assert torch.allclose(flow.inverse(z, labels), growing, atol=1e-12)


@pytest.mark.parametrize("windows", [[1, 2], [0, 1, 1]])
def test_wrong_windows_are_named(windows):
    with pytest.raises(InputError, match="allowed: 1 or more, or None, for each of 3 blocks"):
        inverse_jacobi(small_flow(), tokens(), windows=windows)
    with pytest.raises(InputError, match="tolerance is 0"):
        inverse_jacobi(small_flow(), tokens(), tolerance=0)
