"""Pixels through their own histogram: a density in other coordinates, exact in both directions."""

import math

import pytest
import torch
from conftest import dequantised, jacobian, small_model

from farmer_ref import bits_per_dim
from farmer_ref.model.pixels import TAIL, HistogramPixels, normal_quantile
from farmer_ref.support.errors import InputError

LEVELS, MOSTLY_BLACK = 5, torch.tensor([0, 0, 0, 0, 0, 0, 1, 2, 2, 4])  # level 3 never occurs


def grey_levels(channels: int = 2, count: int = 40) -> torch.Tensor:
    chosen = torch.randint(len(MOSTLY_BLACK), (count, channels, 4, 4), generator=torch.Generator().manual_seed(0))
    return (MOSTLY_BLACK[chosen] + torch.arange(channels)[:, None, None]).clamp(max=LEVELS - 1)


def fitted(channels: int = 2) -> HistogramPixels:
    pixels = HistogramPixels(channels, LEVELS)
    pixels.fit(grey_levels(channels))
    return pixels


def test_every_level_goes_there_and_back():
    pixels, values = fitted(), torch.arange(LEVELS).view(1, 1, 1, -1).repeat(3, 2, 4, 1)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        x = dequantised(values, LEVELS).to(dtype)
        z, _ = pixels(x)
        back = pixels.inverse(z)
        assert z.dtype == back.dtype == dtype
        assert (back - x).abs().max() < tolerance
        assert torch.equal(((back + 1) / 2 * LEVELS).floor().long(), values)


def test_levels_at_the_ends_that_hardly_occur_go_there_and_back():
    """Fifty million training pixels, and the darkest and the brightest levels in none: less than TAIL of all."""
    pixels, values = HistogramPixels(1, 256), torch.arange(256).view(-1, 1, 1, 1)
    pixels.counts[0] = 1
    pixels.counts[0, 100:200] = 500_000
    assert pixels.counts[0, 0] / pixels.counts.sum() < TAIL
    for dtype in (torch.float64, torch.float32):
        for place in (0.05, 0.5, 0.95):
            x = (2 * (values + place) / 256 - 1).to(dtype)
            z, _ = pixels(x)
            assert (z.flatten().diff() > 0).all() and z.abs().max() < 5.2
            assert (pixels.inverse(z) - x).abs().max() < 1e-6


def test_no_pixel_is_rounded_up_out_of_its_cell():
    """Just below the middle of four equal cells: float32 would add 1 to it and find the third, not the second."""
    pixels = HistogramPixels(1, 4)
    pixels.fit(torch.arange(4).view(1, 1, 2, 2))
    x = pixels.inverse(torch.tensor([-1e-12, 0.0]).view(2, 1, 1, 1))
    assert ((x + 1) / 2 * 4).floor().flatten().tolist() == [1.0, 2.0]


def test_the_log_slope_is_that_of_the_map():
    pixels, x = fitted(), dequantised(grey_levels(count=2), LEVELS)
    matrix = jacobian(lambda image: pixels(image)[0], x[:1])
    assert abs(pixels(x)[1][0] - torch.linalg.slogdet(matrix).logabsdet) < 1e-8


def test_a_pixel_is_standard_normal_and_its_density_that_of_the_histogram():
    pixels, values = HistogramPixels(1, LEVELS), grey_levels(channels=1, count=4000)
    pixels.fit(values)
    x = dequantised(values, LEVELS)
    z, log_slope = pixels(x)
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02
    log_normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum((1, 2, 3))
    frequency = pixels.counts[0].double() / pixels.counts.sum()
    wanted = (frequency * LEVELS / 2 * (1 - 2 * TAIL)).log()[values].sum((1, 2, 3))  # log f(x): constant in a cell
    assert torch.allclose(log_normal + log_slope, wanted, atol=1e-9)
    cells = torch.linspace(-1, 1, 100_001, dtype=torch.float64)[:-1] + 1e-5  # f integrates to 1
    z, log_slope = pixels(cells.view(-1, 1, 1, 1))
    assert (log_slope - 0.5 * (z.square().flatten() + math.log(2 * math.pi))).exp().mean() * 2 == pytest.approx(1)


def test_the_exported_quantile_is_the_library_s():
    p = torch.cat([torch.linspace(TAIL, 1 - TAIL, 20_001).double(), torch.tensor([TAIL, 1 - TAIL]).double()])
    p = torch.cat([p, torch.logspace(-7, -1, 1000).double()]).clamp(TAIL, 1 - TAIL)
    assert torch.allclose(normal_quantile(p), torch.special.ndtri(p), rtol=1e-12, atol=1e-13)


def test_outside_of_the_pixels_there_is_no_density_and_the_ends_are_finite():
    pixels = fitted(channels=1)
    z, log_slope = pixels(torch.tensor([-1.001, -1.0, 1.0, 1.001]).view(-1, 1, 1, 1))
    assert z.isfinite().all()
    assert log_slope.isfinite().tolist() == [False, True, True, False] and (log_slope[[0, 3]] < 0).all()
    assert pixels.inverse(torch.tensor([-40.0, 40.0]).view(2, 1, 1, 1)).abs().max() <= 1


@pytest.mark.parametrize("basis", ["pixel", "pca"])
def test_a_model_in_these_coordinates(basis):
    model = small_model(pixels="histogram", patch_basis=basis, levels=LEVELS)
    values = torch.randint(LEVELS, (30, 2, 6, 6), generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="not fitted"):
        model.log_prob(dequantised(values, LEVELS))
    model.pixels.fit(values)
    model.patchify.fit(model.pixels(dequantised(values, LEVELS))[0])
    x, labels = dequantised(values[:2], LEVELS), torch.tensor([0, 1])
    z, logdet = model.encode(x)
    assert (model.decode(z) - x).abs().max() < 1e-7
    matrix = jacobian(lambda image: model.encode(image)[0], x[:1])
    assert abs(logdet[0] - torch.linalg.slogdet(matrix).logabsdet) < 1e-7
    log_p = model.log_prob(x, labels)
    assert torch.allclose(log_p, model.prior.log_prob(z, labels) + logdet, atol=1e-9)
    bits = bits_per_dim(model, values[:2].byte(), labels)
    assert bits.isfinite().all()
    drawn = model.sample(labels, generator=torch.Generator().manual_seed(0))
    assert drawn.abs().max() <= 1
    before = model.pixels.counts.clone()
    assert torch.equal(model.bfloat16().pixels.counts, before)  # a histogram has no precision


def test_a_histogram_is_refused_with_gaussian_noise():
    with pytest.raises(InputError, match="pixels is 'histogram'"):
        small_model(pixels="histogram", dequantisation="gaussian")


@pytest.mark.parametrize(
    "values", [torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), LEVELS), torch.full((1, 1, 2, 2), -1)]
)
def test_what_is_no_grey_level_is_not_counted(values):
    """Images in [-1, 1] are nearly all level 0 once their fractions are dropped."""
    pixels = HistogramPixels(1, LEVELS)
    with pytest.raises(InputError, match=f"values are torch.* allowed: whole grey levels from 0 to {LEVELS - 1}"):
        pixels.fit(values)
    assert not pixels.counts.any()
    bytes_ = HistogramPixels(1, 256)
    bytes_.fit(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
    assert bytes_.counts.sum() == 258
