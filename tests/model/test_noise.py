"""Learned noise: a bijection of every cell, whose log-determinant is exact."""

import math

import pytest
import torch
from conftest import dequantised, jacobian, small_model

from farmer_ref import bits_per_dim
from farmer_ref.model.noise import LearnedNoise
from farmer_ref.support.errors import InputError

LEVELS = 5


def trained(channels: int = 2, spread: float = 1.0) -> LearnedNoise:
    """A map whose weights are no longer zero."""
    torch.manual_seed(0)
    noise = LearnedNoise(channels, LEVELS, 6).double().requires_grad_(False)
    with torch.no_grad():
        for parameter in noise.parameters():
            parameter.normal_(std=spread / math.sqrt(parameter[0].numel()))
    return noise


def grey_levels(count: int = 3, channels: int = 2) -> torch.Tensor:
    return torch.randint(LEVELS, (count, channels, 6, 6), generator=torch.Generator().manual_seed(0))


def test_untrained_it_moves_nothing():
    x = dequantised(grey_levels(), LEVELS)
    for width in (0, 6):
        moved, log_slope = LearnedNoise(2, LEVELS, width).double()(x)
        assert (moved - x).abs().max() < 1e-12 and log_slope.abs().max() < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 2e-3)])
def test_no_pixel_leaves_its_cell_and_all_come_back(dtype, tolerance):
    noise, values = trained(spread=3.0), grey_levels(20)
    x = dequantised(values, LEVELS).to(dtype)
    moved, _ = noise(x)
    assert moved.dtype == dtype and (moved - x).abs().max() > 0.1
    assert torch.equal(((moved.double() + 1) / 2 * LEVELS).floor().long(), values)
    back = noise.inverse(moved)
    assert torch.equal(((back.double() + 1) / 2 * LEVELS).floor().long(), values)
    assert (back - x).abs().mean() < tolerance


def test_the_log_slope_is_that_of_the_map():
    noise, x = trained(), dequantised(grey_levels(1), LEVELS)
    matrix = jacobian(lambda image: noise(image)[0], x)
    assert torch.equal(matrix, matrix.diag().diag())  # within its cell a pixel moves by itself
    assert abs(noise(x)[1][0] - torch.linalg.slogdet(matrix).logabsdet) < 1e-8


def test_the_density_it_gives_to_uniform_noise_integrates_to_one():
    """q(u' | v) = du/du' of an image of one pixel, for each of its grey levels, at equally distant u'."""
    noise, places = trained(channels=1, spread=2.0), (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for level in range(LEVELS):
        u = noise.inverse((2 * (level + places) / LEVELS - 1).view(-1, 1, 1, 1))
        density = (-noise(u)[1]).exp()
        assert density.std() > 0.1 and density.mean() == pytest.approx(1, abs=1e-3)


def test_outside_of_the_pixels_nothing_moves():
    noise, x = trained(channels=1), torch.tensor([-1.5, 2.0], dtype=torch.float64).view(-1, 1, 1, 1)
    moved, log_slope = noise(x)
    assert torch.equal(moved, x) and not log_slope.any()
    assert torch.equal(noise.inverse(moved), x)


@pytest.mark.parametrize("pixels", ["linear", "histogram"])
def test_a_model_with_learned_noise(pixels):
    model, values = small_model(pixels=pixels, levels=LEVELS, noise_width=6), grey_levels(30)
    model.pixels.fit(values)
    x, labels = dequantised(values[:2], LEVELS), torch.tensor([0, 1])
    z, logdet = model.encode(x)
    assert (model.decode(z) - x).abs().max() < 1e-7
    matrix = jacobian(lambda image: model.encode(image)[0], x[:1])
    assert abs(logdet[0] - torch.linalg.slogdet(matrix).logabsdet) < 1e-7
    assert torch.allclose(model.log_prob(x, labels), model.prior.log_prob(z, labels) + logdet, atol=1e-9)
    assert bits_per_dim(model, values[:2].byte(), labels).isfinite().all()
    model.log_prob(x, labels).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.noise.parameters())
    half = model.bfloat16()
    assert half.log_prob(x, labels).dtype == torch.float32


def test_only_uniform_noise_is_learned():
    with pytest.raises(InputError, match="noise_width is 4; allowed: 0 with Gaussian noise"):
        small_model(dequantisation="gaussian", noise_width=4)
