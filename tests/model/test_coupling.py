"""The coupling flow behind the interface of the autoregressive one; test_flow.py has what both must do. Float64, no
weight at zero."""

import math

import pytest
import torch
from conftest import jacobian, logdet_error, round_trip_error, small_coupling, small_model
from conftest import some_tokens as tokens

from farmer_ref import Farmer
from farmer_ref.model.coupling import CouplingFlow
from farmer_ref.support.errors import InputError
from farmer_ref.support.files import write_weights


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
        inverse = flow.inverse(z)
    assert z.dtype == logdet.dtype == torch.float32
    assert 0 < (logdet - flow(x)[1]).abs().max() < 0.1
    assert torch.equal(inverse, flow.inverse(z))  # the inverse is not rounded
    assert (inverse - x).abs().max() < 0.5


@pytest.mark.parametrize("number", range(4))
def test_a_block_changes_the_other_half(number):
    """A kept number passes through; the others depend on themselves and on all kept ones, and not on each other."""
    block = small_coupling().blocks[number]
    kept = block.kept.flatten()
    matrix = jacobian(lambda x: block(x)[0], tokens(1))
    assert torch.equal(matrix[kept], torch.eye(15, dtype=torch.float64)[kept])
    changed = matrix[~kept]
    own = changed[:, ~kept]
    assert torch.equal(own, torch.diag(own.diagonal()))
    assert (changed[:, kept].abs() > 0).all()


def kept_by_blocks(count: int, channels: int, blocks: int) -> list[torch.Tensor]:
    flow = CouplingFlow(count, channels, blocks=blocks, layers=1, width=8, head_dim=8)
    return [block.kept for block in flow.blocks]


def test_the_order_of_halves_is_jet_s():
    """Channels, channels, tokens, and again; the tokens of a square image on a checkerboard, its colours in turn."""
    kept = kept_by_blocks(16, 6, blocks=12)
    checkerboard = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]).bool().flatten()
    for number, half in enumerate(kept):
        if number % 3 == 2:
            assert torch.equal(half, (checkerboard ^ (number % 6 == 5))[:, None].expand(16, 6)), number
        else:
            assert (half == half[0]).all() and half[0].sum() == 3, number


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 6, 12, 48])
def test_halves_of_channels_reach_all_channels_and_do_not_repeat(channels):
    """Two blocks change every channel and look at every channel; no half comes twice before all have come."""
    divisions = math.comb(channels, channels // 2) // (2 if channels % 2 == 0 else 1)
    pairs = min(divisions, 20)
    kept = [half[0] for t, half in enumerate(kept_by_blocks(1, channels, 3 * pairs)) if t % 3 != 2]
    assert len({tuple(half.tolist()) for half in kept}) == 2 * pairs
    for first, second in zip(kept[::2], kept[1::2], strict=True):
        assert torch.equal(first, ~second)
    assert divisions < 5 or any((first != torch.arange(channels).lt(channels // 2)).any() for first in kept)


def test_halves_are_fixed_and_saved_with_the_weights(tmp_path):
    """They depend on no random state. A file has its own, and one without them, of fixed halves, is refused."""
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(small_model(flow="coupling"))
    first, second = ([block.kept for block in model.flow.blocks] for model in models)
    assert all(map(torch.equal, first, second))
    model = models[0].float()
    model.flow.blocks[0].kept = ~model.flow.blocks[0].kept
    model.save_pretrained(tmp_path)
    loaded = Farmer.from_pretrained(tmp_path)
    assert all(torch.equal(a.kept, b.kept) for a, b in zip(model.flow.blocks, loaded.flow.blocks, strict=True))
    images = torch.rand(2, 2, 6, 6)
    assert torch.equal(loaded.encode(images)[0], model.encode(images)[0])
    write_weights(
        tmp_path / "model.safetensors", {k: v for k, v in model.state_dict().items() if not k.endswith("kept")}
    )
    with pytest.raises(InputError, match="does not fit its config.json .*flow.blocks.0.kept"):
        Farmer.from_pretrained(tmp_path)


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
