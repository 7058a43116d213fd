"""Orthonormal bases of a patch (ours): the DCT, and the principal components of training patches.

Legend: D = C p^2 channels of a token, C colour channels, p patch size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II matrix (size, size) in float64; row u holds the cosine of frequency u."""
    position = (torch.arange(size, dtype=torch.float64) + 0.5) * math.pi / size
    matrix = torch.cos(torch.arange(size, dtype=torch.float64)[:, None] * position) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def dct_basis(channels: int, patch_size: int) -> Tensor:
    """Rows of the two-dimensional DCT of a patch (D,D), by rising frequency (u^2 + v^2), colours side by side."""
    one = dct_matrix(patch_size)
    spatial = torch.einsum("ur,vc->uvrc", one, one).reshape(patch_size**2, patch_size**2)
    frequency = torch.arange(patch_size) ** 2
    order = (frequency[:, None] + frequency).flatten().argsort(stable=True)
    basis = torch.einsum("fs,cd->fcds", spatial[order], torch.eye(channels, dtype=torch.float64))
    return basis.reshape(channels * patch_size**2, channels * patch_size**2)


def pca_basis(patches: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D,) and the principal components (D,D), rows by falling variance, of patches (n,D) in float64."""
    mean = patches.mean(0)
    covariance = (patches - mean).T @ (patches - mean) / len(patches)
    vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1).T  # rows, falling variance
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return mean, vectors * largest.sign()  # an eigenvector's sign is arbitrary: its largest entry is positive
