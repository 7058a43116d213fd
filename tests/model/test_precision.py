"""What is rounded in a training step, and what never is."""

import pytest
import torch
import torch.nn.functional as F
from conftest import Dispatched, small_flow, small_model

from farmer_ref.model.precision import full_precision, rounded_products


def test_full_precision_holds_inside_a_step_whose_products_are_rounded():
    assert torch.get_float32_matmul_precision() == "highest"
    a = torch.randn(4, 4)
    with Dispatched() as mode, torch.autocast("cpu", dtype=torch.bfloat16), rounded_products():
        a @ a
        with full_precision(a), full_precision(a):
            a @ a
        with torch.autocast("cpu", enabled=False):
            a @ a
    found = [(dtype, rounded) for dtype, rounded, _ in mode.products]
    assert found == [(torch.bfloat16, True), (torch.float32, False), (torch.float32, True)]
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_a_user_s_own_setting_is_put_back(setting):
    torch.set_float32_matmul_precision(setting)
    try:
        with Dispatched() as mode, full_precision(torch.zeros(1)):
            torch.randn(2, 2) @ torch.randn(2, 2)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")
    assert mode.products == [(torch.float32, False, (2, 2))]


@pytest.mark.parametrize("setting", [("tf32", "ieee"), ("ieee", "bf16"), ("none", "tf32")])
@pytest.mark.parametrize("context", [lambda: full_precision(torch.zeros(1)), rounded_products])
def test_what_a_user_has_set_for_a_gpu_or_a_cpu_alone_is_put_back(setting, context):
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    try:
        for backend, precision in zip(backends, setting, strict=True):
            backend.fp32_precision = precision
        with context():
            inside = [backend.fp32_precision for backend in backends]
        assert inside == (["tf32", "tf32"] if context is rounded_products else ["ieee", "ieee"])
        assert tuple(backend.fp32_precision for backend in backends) == setting
    finally:
        torch.set_float32_matmul_precision("highest")


@torch.no_grad()
def test_an_inverse_is_never_rounded():
    """Token by token, and the matrices around: else a round trip in a training process is off by a percent."""
    model = small_model(channel_mixing="learned", patch_basis="dct", image_size=8, patch_size=4, informative=20).float()
    flow, x = small_flow(channel_mixing=True).float(), torch.randn(2, 5, 3)
    with Dispatched() as mode, rounded_products():
        flow.inverse(x)
        model.to_images(torch.randn(2, 4, 32))
    assert len(mode.products) > 20
    assert not any(rounded for _, rounded, _ in mode.products)


@torch.no_grad()
def test_a_convolution_is_never_rounded(monkeypatch):
    """A GPU's convolutions round float32 inputs unless told not to; products of matrices have another switch."""
    model, seen, plain = small_model(noise_width=4).float(), [], F.conv2d
    before = torch.backends.cudnn.conv.fp32_precision

    def watched(*args, **options):
        seen.append(torch.backends.cudnn.conv.fp32_precision)
        return plain(*args, **options)

    monkeypatch.setattr(F, "conv2d", watched)
    model.decode(model.encode(torch.zeros(1, 2, 6, 6))[0])
    assert seen == ["ieee"] * 6 and torch.backends.cudnn.conv.fp32_precision == before
