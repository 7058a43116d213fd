"""The coupling flow behind the interface of the autoregressive one; test_flow.py has what both must do. Float64, no
weight at zero."""

import pytest
import torch
from conftest import jacobian, logdet_error, round_trip_error, small_coupling, small_model
from conftest import some_tokens as tokens

from farmer_ref.model.coupling import CouplingFlow


def test_a_new_flow_is_the_identity():
    z, logdet = CouplingFlow(5, 3, blocks=4, layers=1, width=16, head_dim=8).double()(tokens())
    assert torch.equal(z, tokens()) and torch.equal(logdet, torch.zeros(3, dtype=torch.float64))


def test_log_scale_is_bounded():
    flow = small_coupling(blocks=1, max_log_scale=0.5)
    flow.blocks[0].network.project_out.weight.data *= 1e4
    assert 0 < flow(tokens())[1].abs().max() <= 0.5 * 5 * 2 + 1e-9  # two of three channels of five tokens change


def test_bfloat16_autocast_keeps_the_affine_map_exact():
    flow, x = small_coupling().float(), tokens().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, logdet = flow(x)
    assert z.dtype == logdet.dtype == torch.float32
    assert 0 < (logdet - flow(x)[1]).abs().max() < 0.1
    assert (flow.inverse(z) - x).abs().max() < 0.5


@pytest.mark.parametrize("number", range(4))
def test_what_a_block_keeps_alternates(number):
    """A kept number passes through; the others depend on themselves and on all kept ones, and not on each other."""
    block = small_coupling().blocks[number]
    kept = block.kept.flatten()
    expected = [
        [channel < 1 for _ in range(5) for channel in range(3)],
        [token % 2 == 0 for token in range(5) for _ in range(3)],
    ][number % 2]
    assert kept.tolist() == [value != (number >= 2) for value in expected]
    matrix = jacobian(lambda x: block(x)[0], tokens(1))
    assert torch.equal(matrix[kept], torch.eye(15, dtype=torch.float64)[kept])
    changed = matrix[~kept]
    own = changed[:, ~kept]
    assert torch.equal(own, torch.diag(own.diagonal()))
    assert (changed[:, kept].abs() > 0).all()


def test_a_broken_block_is_noticed():
    """If the network sees what it changes, the log-determinant is wrong and so is the inverse."""
    flow = small_coupling()
    for block in flow.blocks:

        def seeing_all(x, labels, training=None, block=block):
            network = block.network
            parts = network.shift_and_log_scale(x, network.embedded_positions(labels), network.transformer)
            return [part * ~block.kept for part in parts]

        block._shift_and_log_scale = seeing_all
    assert round_trip_error(flow, tokens()) > 1e-3
    assert logdet_error(flow, tokens()) > 1e-3


def test_labels_change_a_conditional_flow():
    flow = small_coupling(num_classes=4)
    labels = torch.tensor([0, -1, 2])
    z = flow(tokens(), labels)[0]
    assert (z - flow(tokens())[0]).abs().max() > 1e-4
    assert torch.allclose(flow.inverse(z, labels), tokens(), atol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"channel_mixing": "learned", "patch_basis": "dct"}])
def test_a_farmer_with_a_coupling_flow(changes):
    model = small_model(flow="coupling", flow_blocks=4, **changes)
    labels = torch.tensor([0, 1, 2, -1])
    images = model.sample(labels, generator=torch.Generator().manual_seed(0))
    assert images.shape == (4, 2, 6, 6) and images.isfinite().all()
    z, logdet = model.encode(images)
    assert logdet.shape == (4,)
    for method in ("sequential", "jacobi"):
        assert torch.allclose(model.decode(z, method=method), images, atol=1e-8)
