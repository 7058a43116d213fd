"""Linear layers by oneDNN: the numbers and gradients of PyTorch's own, to rounding."""

import math
from pathlib import Path

import pytest
import torch

from farmer_ref.model import linear
from farmer_ref.model.linear import Linear

needs_onednn = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch without oneDNN")


def layer_and_input(monkeypatch, used, shape=(20, 16, 12), out=7):
    monkeypatch.setattr(linear, "least_weights", lambda: 0 if used else math.inf)
    torch.manual_seed(0)
    return Linear(shape[-1], out), torch.randn(shape, requires_grad=True)


@needs_onednn
@pytest.mark.parametrize("out", [7, 30])  # fewer and more than go in: two ways to the gradient of the weights
def test_numbers_and_gradients_are_those_of_pytorch(monkeypatch, out):
    found = []
    for used in (True, False):
        layer, x = layer_and_input(monkeypatch, used, out=out)
        y = layer(x)
        assert (type(y.grad_fn.next_functions[0][0]).__name__ == "ProductBackward") == used
        gradients = torch.autograd.grad(y.sin().sum(), [x, layer.weight, layer.bias], create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), [x, layer.weight])
        found.append([y, *gradients, *second])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_small_and_other_inputs_go_to_pytorch(monkeypatch):
    layer, x = layer_and_input(monkeypatch, True, shape=(2, 3, 12))
    assert "Product" not in type(layer(x).grad_fn.next_functions[0][0]).__name__
    layer, x = layer_and_input(monkeypatch, True)
    assert layer.double()(x.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16


@needs_onednn
def test_transforms_of_functions_work_as_with_pytorch_s_layer(monkeypatch):
    """Gradients image by image, and derivatives along a direction: our product has no rule for either."""
    layer, x = layer_and_input(monkeypatch, True, shape=(3, 200, 12))
    plain, x = torch.nn.Linear(12, 7), x.detach()
    plain.load_state_dict(layer.state_dict())
    found = []
    for one in (layer, plain):
        each = torch.func.vmap(torch.func.grad(lambda image, one=one: one(image).sin().sum()))(x)
        found.append([each, torch.func.jvp(one, (x,), (x,))[1]])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_onednn
@pytest.mark.parametrize(
    ("vendor", "family", "expected"),
    [("AuthenticAMD", 26, 0), ("AuthenticAMD", 25, 256 * 256), ("GenuineIntel", 26, math.inf)],
)
def test_only_processors_that_gain_use_onednn(monkeypatch, vendor, family, expected):
    text = f"vendor_id\t: {vendor}\ncpu family\t: {family}\n"
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    linear.least_weights.cache_clear()
    try:
        assert linear.least_weights() == expected
    finally:
        linear.least_weights.cache_clear()
