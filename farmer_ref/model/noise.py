"""Dequantisation noise that follows the image (ours, not in the paper): a map of each pixel within its grey level.

Uniform noise makes every grey level a flat box, which a mixture of Gaussians can only approximate. Here a small ConvNet
reads the grey levels v of the whole image and gives each pixel a shift m and a scale s, by which its place u in [0, 1]
within the cell of its level moves to

    u' = Phi(m + s Phi^-1(u)),     log du'/du = log s + log phi(m + s Phi^-1(u)) - log phi(Phi^-1(u)),

with the distribution function Phi and the density phi of the standard normal. No pixel leaves its cell, so the map is
invertible, its log-determinant is exact, and with uniform u the bound on the discrete log-probability is that of
variational dequantisation, log p(v + u') - log q(u' | v) (Flow++, Ho et al. 2019), where q is the density of u'.
Untrained, the map is the identity. Close to the edges of a cell, places that differ by less than the rounding of
pixels coincide: in float32 and with 256 levels, the last 3e-5.

Legend: B batch, C colour channels, H = W image size, L grey levels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farmer_ref.model.pixels import cells, normal_quantile
from farmer_ref.model.precision import exact_convolutions, full_precision

EDGE = 1e-7  # u runs from EDGE to 1 - EDGE: float32 places a pixel in its cell no better
MOST_SHIFT = 2.0  # of |m|
LEAST_LOG_SCALE, MOST_LOG_SCALE = -3.0, 0.2  # of log s; with MOST_SHIFT, |Phi^-1(u')| < 8.4


class Convolution(nn.Conv2d):
    """A convolution of images that keep their size, in their precision, whatever that of the weights."""

    def __init__(self, channels_in: int, channels_out: int, side: int):
        super().__init__(channels_in, channels_out, side, padding=side // 2)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) to images of the same size, with another number of channels."""
        assert self.bias is not None
        return F.conv2d(images, self.weight.to(images.dtype), self.bias.to(images.dtype), padding=self.padding)


def _on_grey_levels(images: Tensor) -> Tensor:
    """Which pixels lie in [-1, 1]: others stay where they are. In a histogram's coordinates they have density 0."""
    return (images >= -1) & (images <= 1)


class LearnedNoise(nn.Module):
    """The map of the pixels of an image within their cells. Without channels of its own (`width` 0), the identity."""

    def __init__(self, channels: int, levels: int, width: int):
        super().__init__()
        self.levels = levels
        sizes = [(3 * channels, width, 3), (width, width, 3), (width, 2 * channels, 1)] if width else []
        self.layers = nn.ModuleList(Convolution(*size) for size in sizes)
        for parameter in [*self.layers.parameters()][-2:]:
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,C,H,W) in [-1, 1] to such images, in the same grey levels, and sum log du'/du (B,)."""
        if not self.layers:
            return images, images.new_zeros(images.shape[0])
        level, u = cells(images, self.levels)
        shift, log_scale = self.shift_and_log_scale(level, images.dtype)
        exporting = torch.compiler.is_exporting()  # ONNX has no Phi^-1, and its runtime has Phi in float32 alone
        before = (normal_quantile if exporting else torch.special.ndtri)(u.clamp(EDGE, 1 - EDGE))
        after = shift + log_scale.exp() * before
        log_slope = log_scale + 0.5 * (before.square() - after.square())
        place = torch.special.ndtr(after.to(images.dtype) if exporting else after)
        moved = self._images(level, place.double(), images.dtype)
        inside = _on_grey_levels(images)
        return torch.where(inside, moved, images), (log_slope * inside).sum((1, 2, 3)).to(images.dtype)

    def inverse(self, images: Tensor) -> Tensor:
        """Moved images (B,C,H,W) back to where they were."""
        if not self.layers:
            return images
        level, u = cells(images, self.levels)
        shift, log_scale = self.shift_and_log_scale(level, images.dtype)
        info = torch.finfo(u.dtype)
        before = (torch.special.ndtri(u.clamp(info.tiny, 1 - info.eps / 2)) - shift) * (-log_scale).exp()
        back = self._images(level, torch.special.ndtr(before), images.dtype)
        return torch.where(_on_grey_levels(images), back, images)

    def shift_and_log_scale(self, level: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """m and log s (B,C,H,W), in float64, of the pixels of images whose grey levels (B,C,H,W) are given."""
        first, second, last = self.layers
        grey = (2 * level + 1) / self.levels - 1
        seen = torch.cat([grey, level == 0, level == self.levels - 1], dim=1).to(dtype)  # black and white stand out
        with full_precision(seen), exact_convolutions():
            shift, scale = last(F.gelu(second(F.gelu(first(seen))))).double().chunk(2, dim=1)
        at_rest = math.log(-LEAST_LOG_SCALE / MOST_LOG_SCALE)  # so that 0 gives s = 1
        log_scale = LEAST_LOG_SCALE + (MOST_LOG_SCALE - LEAST_LOG_SCALE) * torch.sigmoid(scale + at_rest)
        return MOST_SHIFT * torch.tanh(shift), log_scale

    def _images(self, level: Tensor, u: Tensor, dtype: torch.dtype) -> Tensor:
        """The inverse of `cells`; rounding to `dtype` moves no pixel out of its cell."""
        margin = self.levels * torch.finfo(dtype).eps
        return (2 * (level + u.clamp(margin, 1 - margin)) / self.levels - 1).to(dtype)
