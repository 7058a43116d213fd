"""Eqs. 8-10: the flow's two directions, its log-determinant, its causality. Float64, no weight at zero."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import VARIANTS, jacobian, logdet_error, round_trip_error, small_coupling, small_flow
from conftest import some_tokens as tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from farmer_ref.model import transformer
from farmer_ref.model.flow import AutoregressiveFlow, ChannelMixing
from farmer_ref.model.jacobi import inverse_jacobi
from farmer_ref.support.errors import InputError

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
