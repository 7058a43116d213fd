"""Pixels through their own histogram (ours, not in the paper): coordinates in which one pixel is standard normal.

A uniformly dequantised pixel x = 2 (v + u) / L - 1 has a density f that is constant on the cell of each grey level v,
so its distribution function F is piecewise linear, and the histogram of the training pixels gives both. Then
F(x) is uniform on [0, 1] and z = Phi^-1(F(x)) is standard normal, with Phi the standard normal distribution function
(marginal Gaussianisation, Chen and Gopinath 2000). Levels that fill most of an image, such as the black of MNIST, are
no longer needles 2/L wide that a flow must stretch by hundreds.

Legend: B batch, C colour channels, H = W image size, L grey levels.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from farmer_ref.model.checks import check_grey_levels
from farmer_ref.model.precision import float32_at_least
from farmer_ref.support.errors import InputError

TAIL = 1e-7  # F runs from TAIL to 1 - TAIL, so |z| < 5.2; float32 places a pixel in its cell no better

# Numerators and denominators of algorithm AS 241 (Wichura 1988), constant term first: the centre, and the tails.
# fmt: off
CENTRE = (
    (3.3871328727963665, 133.14166789178438, 1971.5909503065513, 13731.69376550946,
     45921.95393154987, 67265.7709270087, 33430.57558358813, 2509.0809287301227),
    (1.0, 42.31333070160091, 687.1870074920579, 5394.196021424751,
     21213.794301586597, 39307.89580009271, 28729.085735721943, 5226.495278852854),
)
TAILS = (
    (1.4234371107496835, 4.630337846156546, 5.769497221460691, 3.6478483247632045,
     1.2704582524523684, 0.2417807251774506, 0.022723844989269184, 0.0007745450142783414),
    (1.0, 2.053191626637759, 1.6763848301838038, 0.6897673349851,
     0.14810397642748008, 0.015198666563616457, 0.0005475938084995345, 1.0507500716444169e-09),
)
# fmt: on


def _ratio(x: Tensor, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """A polynomial over another, by Horner's rule."""
    above, below = (
        functools.reduce(lambda sum_, c: sum_ * x + c, reversed(part[:-1]), torch.full_like(x, part[-1]))
        for part in coefficients
    )
    return above / below


def normal_quantile(probability: Tensor) -> Tensor:
    """Phi^-1 of float64 numbers in [TAIL, 1 - TAIL], as `torch.special.ndtri` but in operations that ONNX has."""
    q = probability - 0.5
    smaller = torch.minimum(probability, 1 - probability)
    centre = q * _ratio(0.180625 - q * q, CENTRE)
    tail = _ratio(torch.sqrt(-torch.log(smaller)) - 1.6, TAILS)
    return torch.where(q.abs() <= 0.425, centre, torch.where(q < 0, -tail, tail))


def cells(images: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The grey levels v of pixels in [-1, 1], and their places u in [0, 1] within the cells of these, in float64."""
    place = (images.double() + 1) * (levels / 2)  # v + u
    level = place.floor().clamp(0, levels - 1)
    return level, (place - level).clamp(0, 1)


class LinearPixels(nn.Module):
    """The paper's: pixels stay as they are, and there is nothing to fit."""

    def __init__(self, channels: int, levels: int):
        super().__init__()

    def fit(self, values: Tensor) -> None:
        """Nothing to fit."""

    def check_fitted(self) -> None:
        """Nothing to check."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The images themselves, and zeros (B,)."""
        return images, images.new_zeros(images.shape[0])

    def pixel_by_pixel(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The images themselves, and a zero for each pixel."""
        return images, torch.zeros_like(images)

    def inverse(self, images: Tensor) -> Tensor:
        """The images themselves."""
        return images


class HistogramPixels(nn.Module):
    """z = Phi^-1(F(x)) for every pixel x, with F from the histogram of its colour channel; exact and invertible.

    The histogram is part of the model: `fit` counts it once, on training images, and it is stored with the weights,
    as integers, so that no change of precision moves it.
    """

    counts: Tensor

    def __init__(self, channels: int, levels: int):
        super().__init__()
        self.channels, self.levels = channels, levels
        self.register_buffer("counts", torch.zeros(channels, levels, dtype=torch.long))  # (C,L); 0: not fitted yet
        self._seen_fitted = False

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.channels} histograms of {self.levels} levels"

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Count the grey levels of training images (B,C,H,W), plus one each, so that every level has a place."""
        check_grey_levels("values", values, self.levels)
        for channel, pixels in enumerate(values.long().transpose(0, 1).flatten(1)):  # each (B*H*W,)
            self.counts[channel] = 1 + torch.bincount(pixels, minlength=self.levels)

    def check_fitted(self) -> None:
        """Raise `InputError` where `fit` was not called; a graph that is exported has no check."""
        if not self._seen_fitted and not torch.compiler.is_exporting():
            if not self.counts.any():
                raise InputError(
                    "pixels are 'histogram' and not fitted; call pixels.fit(grey levels of training images)"
                )
            self._seen_fitted = True  # reading a tensor makes a GPU wait, so only once

    def _tables(self) -> tuple[Tensor, Tensor]:
        """The mass of each level v (C,L), 1 - 2 TAIL in all, and F at the lower edge of v's cell (C,L), in float64."""
        mass = self.counts.double() / self.counts.sum(1, keepdim=True) * (1 - 2 * TAIL)
        return mass, TAIL + mass.cumsum(1) - mass

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,C,H,W) in [-1, 1] to z (B,C,H,W) and sum log dz/dx (B,); -inf outside of [-1, 1]."""
        z, log_slope = self.pixel_by_pixel(images)
        dtype = float32_at_least(images.dtype)
        return z.to(dtype), log_slope.sum((1, 2, 3)).to(dtype)

    def pixel_by_pixel(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,C,H,W) to z and log dz/dx = log f(x) - log phi(z) of each pixel, both (B,C,H,W) in float64."""
        self.check_fitted()
        with torch.autocast(images.device.type, enabled=False):
            mass, below = self._tables()
            level, u = cells(images, self.levels)  # (B,C,H,W)
            channel = torch.arange(self.channels, device=images.device)[:, None, None]
            mass, below = (table[channel, level.long()] for table in (mass, below))
            distribution = below + mass * u  # from TAIL to 1 - TAIL
            exporting = torch.compiler.is_exporting()  # ONNX has no Phi^-1
            z = normal_quantile(distribution) if exporting else torch.special.ndtri(distribution)
            log_slope = (mass * (self.levels / 2)).log() + 0.5 * (z.square() + math.log(2 * math.pi))
            log_slope = log_slope.masked_fill((images < -1) | (images > 1), -math.inf)
        return z, log_slope

    def inverse(self, z: Tensor) -> Tensor:
        """z (B,C,H,W) to images in [-1, 1]: x = F^-1(Phi(z)), never rounded up out of the cell it belongs to."""
        self.check_fitted()
        dtype = float32_at_least(z.dtype)
        with torch.autocast(z.device.type, enabled=False):
            mass, below = self._tables()
            distribution = torch.special.ndtr(z.double()).transpose(0, 1)  # (C,B,H,W)
            flat = distribution.flatten(1).contiguous()  # (C,B*H*W)
            level = (torch.searchsorted(below, flat, right=True) - 1).clamp(min=0)
            share = ((flat - below.gather(1, level)) / mass.gather(1, level)).clamp(
                0, 1 - self.levels * torch.finfo(dtype).eps
            )
            images = 2 * (level + share) / self.levels - 1
        return images.view(distribution.shape).transpose(0, 1).to(dtype)


PIXELS = {"linear": LinearPixels, "histogram": HistogramPixels}
