"""Dequantisation, patches and bases, bits/dim."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from farmer_ref.model.bases import dct_basis, dct_matrix, pca_basis
from farmer_ref.model.tokens import Dequantiser, Patchify, nats_to_bits_per_dim
from farmer_ref.support.errors import InputError


@given(
    side=st.integers(1, 4),
    patch=st.integers(1, 4),
    channels=st.integers(1, 3),
    basis=st.sampled_from(["pixel", "pca", "dct"]),
)
@settings(max_examples=40, deadline=None)
def test_patchify_round_trip_and_orthonormal(side, patch, channels, basis):
    patchify = Patchify(side * patch, channels, patch_size=patch, basis=basis).double()
    images = torch.randn(4, channels, side * patch, side * patch, dtype=torch.float64)
    patchify.fit(images)
    tokens = patchify(images)
    assert tokens.shape == (4, side * side, channels * patch**2)
    assert torch.allclose(patchify.inverse(tokens), images, atol=1e-11)
    matrix = patchify._rows()
    assert torch.allclose(matrix @ matrix.T, torch.eye(len(matrix), dtype=torch.float64), atol=1e-11)


def test_patchify_has_the_order_of_unfold():
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(Patchify(8, 3, patch_size=4)(images), F.unfold(images, 4, stride=4).mT)


def test_pca_sorts_by_variance_and_decorrelates():
    patchify = Patchify(8, 1, patch_size=2, basis="pca").double()
    images = torch.cumsum(torch.randn(64, 1, 8, 8, dtype=torch.float64), -1) + 3
    with pytest.raises(InputError, match="not fitted"):
        patchify(images)
    patchify.fit(images)
    tokens = patchify(images).flatten(0, 1)
    covariance = torch.cov(tokens.T)
    assert (tokens.mean(0).abs() < 1e-9).all()
    assert (covariance.diagonal().diff() < 0).all()
    assert torch.allclose(covariance, torch.diag(covariance.diagonal()), atol=1e-9)


def test_a_basis_stored_in_float32_is_exact_in_float64():
    """What a saved and loaded model has: float32 rows, orthonormal to 1e-7 only, must not spoil a float64 check."""
    patchify = Patchify(8, 3, patch_size=4, basis="pca")
    patchify.fit(torch.randn(50, 3, 8, 8))
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    double = patchify.double()
    assert (double.inverse(double(images)) - images).abs().max() < 1e-11
    assert abs(torch.linalg.slogdet(double._rows()).logabsdet) < 1e-11


def test_dct_is_orthonormal_and_starts_with_the_mean():
    matrix = dct_matrix(5)
    assert torch.allclose(matrix @ matrix.T, torch.eye(5, dtype=torch.float64), atol=1e-12)
    constant = torch.ones(1, 2, 4, 4)
    tokens = Patchify(4, 2, patch_size=4, basis="dct")(constant)[0, 0]
    assert torch.allclose(tokens, torch.tensor([4.0, 4.0] + [0.0] * 30), atol=1e-5)  # the means of both colours first


def test_dct_rows_run_by_rising_frequency():
    """cos (pi u (row + 1/2) / p) cos (pi v (column + 1/2) / p), by u^2 + v^2: (2,2) comes before (0,3)."""
    place = (torch.arange(4).double() + 0.5) * math.pi / 4
    pairs = sorted(((u, v) for u in range(4) for v in range(4)), key=lambda pair: pair[0] ** 2 + pair[1] ** 2)
    assert pairs.index((2, 2)) < pairs.index((0, 3))
    for row, (u, v) in zip(dct_basis(1, 4), pairs, strict=True):
        wave = torch.outer((u * place).cos(), (v * place).cos()).flatten()
        assert torch.allclose(row, wave / wave.norm(), atol=1e-12), (u, v)


def test_the_sign_of_a_principal_component_is_fixed():
    """Whatever the library's eigenvectors are: a model fitted again on another machine is the same."""
    patches = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, vectors = pca_basis(patches)
    assert (vectors.gather(1, vectors.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_quantise_inverts_dequantise(kind, levels):
    dequantiser = Dequantiser(kind, levels, noise_start=0.1, noise_final=1e-4)
    values = torch.arange(levels, dtype=torch.uint8).view(1, 1, 1, -1)
    noise = dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
    images = dequantiser(values, noise)
    assert torch.equal(dequantiser.quantise(images), values)
    assert torch.allclose(dequantiser.without_noise(images), torch.linspace(-1, 1, levels).view(1, 1, 1, -1), atol=1e-6)
    assert images.min() >= -1.001 and images.max() <= 1.001


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_rounding_puts_no_pixel_into_the_next_cell(levels):
    dequantiser = Dequantiser("uniform", levels, noise_start=0.1, noise_final=0.005)
    values = torch.arange(levels, dtype=torch.uint8).view(1, 1, 1, -1).expand(1, 1, 50, -1)
    largest = 1 - 2.0**-24 * torch.arange(1, 51).view(1, 1, 50, 1)  # the largest float32 below 1
    images = dequantiser(values, largest.expand(values.shape))
    assert torch.equal(dequantiser.quantise(images), values)
    assert (images > 2 * values / levels - 1 + 1.9 / levels).all()  # near the upper end of the cell all the same


def test_noise_falls_on_a_cosine():
    dequantiser = Dequantiser("gaussian", 256, noise_start=0.1, noise_final=0.005)
    found = [round(dequantiser.noise_std_at(p), 6) for p in (0, 0.25, 0.5, 0.75, 1)]
    assert found == [0.1, 0.086088, 0.0525, 0.018912, 0.005]


@pytest.mark.parametrize(("levels", "dimensions"), [(17, 64), (256, 3072)])
def test_bits_per_dim_of_a_uniform_density_is_log2_levels(levels, dimensions):
    """Density 1/2 per dimension on [-1, 1] makes all levels equally likely: log2 L bits/dim, the whole constant."""
    log_prob = torch.full((3,), -dimensions * math.log(2), dtype=torch.float64)
    bits = nats_to_bits_per_dim(log_prob, dimensions, levels)
    assert torch.allclose(bits, torch.full((3,), math.log2(levels), dtype=torch.float64))


def test_a_basis_is_not_fitted_on_grey_levels():
    with pytest.raises(InputError, match="images are torch.uint8"):
        Patchify(8, 3, patch_size=4, basis="pca").fit(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
