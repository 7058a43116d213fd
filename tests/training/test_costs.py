"""What a model costs, computed, against what PyTorch counts."""

import dataclasses
import weakref

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from farmer_ref import PRESETS, Farmer
from farmer_ref.model.transformer import TrainingPass
from farmer_ref.parameters import count
from farmer_ref.training.costs import forward_flops, peak_flops_of, saved_bytes, state_bytes, training_flops

PAPER = ("farmer-1.1b-p16", "farmer-1.1b-p8", "farmer-1.9b-p16", "farmer-1.9b-p8")

VARIANTS = (
    {},
    {"channel_mixing": "learned", "patch_basis": "dct"},
    {"informative": None},
    {"redundant_prior": "normal", "condition_repeats": 3},
    {"noise_width": 8},
)


def fitted(config):
    model = Farmer(config)
    if config.patch_basis == "pca":
        model.patchify.fit(torch.rand(20, config.channels, config.image_size, config.image_size))
    return model


@pytest.mark.parametrize("changes", VARIANTS)
def test_operations_are_those_that_pytorch_counts(changes):
    """Forward exactly; backward twice as many, but for what needs no gradient: the image, an orthonormal basis."""
    config = dataclasses.replace(PRESETS["digits"].model, **{"pixels": "linear", **changes})
    model, images = fitted(config), torch.rand(3, 1, 8, 8)
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):  # the CPU's own is not counted
        total = model(images, torch.zeros(3, dtype=torch.long)).total
    mixing = changes.get("channel_mixing") == "learned"
    once = 4 * 2 * 2 * config.token_channels**3 if mixing else 0  # A = P L U, for a whole batch
    assert forward.get_total_flops() == 3 * (forward_flops(config) - once) + once
    with FlopCounterMode(display=False) as backward:
        total.sum().backward()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == pytest.approx(3 * training_flops(config), rel=0.03)


@pytest.mark.parametrize("name", PAPER)
def test_paper_presets_in_miniature(name):
    """On the meta device whole; a forward and a backward pass of a copy with little of everything but width."""
    config = PRESETS[name].model
    with torch.device("meta"):
        whole = Farmer(config)
    assert sum(parameter.numel() for parameter in whole.parameters()) == count(config)["total"]
    few = {"flow_blocks": 2, "flow_layers": 1, "prior_layers": 1, "components": 4, "redundant_components": 4}
    model = Farmer(dataclasses.replace(config, image_size=64, **few))
    training = TrainingPass(torch.arange(1), 1, recompute=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model(torch.rand(1, 3, 64, 64) * 2 - 1, torch.tensor([999]), training)
    assert terms.total.dtype == torch.float32 and torch.isfinite(terms.total).all()
    terms.total.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_is_what_forward_keeps(checkpointed, precision):
    config = dataclasses.replace(
        PRESETS["digits"].model, pixels="linear", flow_blocks=3, prior_layers=3, max_log_scale=2.0
    )

    def kept(images):
        pieces = {}

        def pack(tensor):
            pieces[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model = Farmer(config)
        training = TrainingPass(torch.arange(images), images, recompute=checkpointed)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"), hooks:
            alive = model(torch.rand(images, 1, 8, 8), torch.zeros(images, dtype=torch.long), training)
        assert alive
        return sum(pieces.values())

    measured = (kept(40) - kept(20)) / 20
    assert saved_bytes(config, checkpoint_activations=checkpointed, precision=precision) == pytest.approx(
        measured, rel=0.02
    )


@pytest.mark.parametrize("name", ["digits-noise", "imagenet64", *PAPER])
def test_the_model_s_own_estimate_of_a_gradient_is_above_what_forward_keeps(name):
    """It decides how many images are denoised at a time, and leaves room for what is recomputed."""
    config = PRESETS[name].model
    kept = saved_bytes(config, checkpoint_activations=True, precision="float32")
    assert 1.2 <= config.gradient_bytes / kept <= 2.5


def test_memory_of_denoising_does_not_grow_with_the_batch(monkeypatch):
    """What is kept for backward at a time; without recomputation and chunks it was 600 GiB for the largest preset."""
    model = Farmer(dataclasses.replace(PRESETS["digits-noise"].model, flow_blocks=8, flow_layers=6))

    def most_kept(images, at_once):
        monkeypatch.setattr("farmer_ref.model.farmer.DENOISING_BYTES", at_once * model.config.gradient_bytes)
        alive, sizes = weakref.WeakValueDictionary(), []

        def keep(tensor):
            alive[id(tensor)] = tensor
            storages = {kept.untyped_storage().data_ptr(): kept.untyped_storage().nbytes() for kept in alive.values()}
            sizes.append(sum(storages.values()))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.denoise(torch.rand(images, 1, 8, 8), torch.zeros(images, dtype=torch.long))
        return max(sizes)

    largest = {(at_once, images): most_kept(images, at_once) for at_once in (2, 6) for images in (6, 24)}
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert largest[6, 24] <= 6 * model.config.gradient_bytes + weights
    assert largest[2, 24] == pytest.approx(largest[2, 6], rel=0.05)
    assert largest[6, 24] == pytest.approx(largest[6, 6], rel=0.05)


def test_memory_falls_with_checkpoints_and_processes():
    config = PRESETS["farmer-1.1b-p16"].model
    assert saved_bytes(config, checkpoint_activations=True) < saved_bytes(config) / 3
    with torch.no_grad():  # as in a notebook that has switched gradients off
        assert saved_bytes(config) > 0
    assert state_bytes(800, 8) == state_bytes(800) / 8 == 2000


def test_peaks_by_name():
    assert peak_flops_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops_of("NVIDIA H100 PCIe") == 756e12
    assert peak_flops_of("NVIDIA A100-SXM4-80GB") == 312e12
    for name in ("An abacus", "NVIDIA RTX A1000", "NVIDIA T400 4GB", "NVIDIA L40"):  # the last: no A100, T4 or L4
        assert peak_flops_of(name) == 0
