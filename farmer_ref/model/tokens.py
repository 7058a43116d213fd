"""Images and tokens: dequantisation, the noise schedule, patches and their bases, and the unit bits/dim.

Legend: B batch, C colour channels, H = W image size, p patch size, N = (H/p)^2 tokens, D = C p^2 channels of a token,
L grey levels of a pixel.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from farmer_ref.model.bases import dct_basis, pca_basis
from farmer_ref.model.checks import checked_images
from farmer_ref.model.precision import float32_at_least, full_precision
from farmer_ref.support.errors import InputError


class Dequantiser:
    """Discrete grey levels to continuous images in [-1, 1] and back (§3.2). The kind is saved with the model.

    `uniform`: x = 2 (v + u) / L - 1 with u ~ U[0, 1). Every level v becomes an interval of width 2/L, every image a
    cell of volume (2/L)^(CHW), so the expected log-density of x, corrected by that volume, bounds the log-probability
    of the image from below.
    `gaussian`: x = 2 v / (L - 1) - 1 + noise_std * e with e ~ N(0, I). The density of such an x is that of a *noised*
    image: it says nothing about discrete bits/dim.
    """

    def __init__(self, kind: Literal["uniform", "gaussian"], levels: int, *, noise_start: float, noise_final: float):
        self.kind, self.levels, self.noise_start, self.noise_final = kind, levels, noise_start, noise_final

    def noise_std_at(self, progress: float) -> float:
        """Standard deviation of the Gaussian noise after a share `progress` in [0, 1] of the training (§3.2).

        It falls from .1 to .005 on a cosine; the formula is ours: final + (start - final) (1 + cos(pi progress)) / 2.
        """
        progress = min(max(progress, 0.0), 1.0)
        return self.noise_final + (self.noise_start - self.noise_final) * (1 + math.cos(math.pi * progress)) / 2

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The random numbers that `__call__` needs: u ~ U[0, 1) or e ~ N(0, I)."""
        random = torch.rand if self.kind == "uniform" else torch.randn
        return random(shape, generator=generator, device=generator.device)

    def __call__(self, values: Tensor, noise: Tensor, noise_std: float | None = None) -> Tensor:
        """Grey levels `values` (B,C,H,W), integers 0..L-1, with `noise` from `draw`, to continuous images.

        `noise_std` (Gaussian only) is that of the end of training unless given. u just below 1 is cut a little, so that
        rounding puts no pixel into the next cell.
        """
        values = values.to(noise.dtype)
        if self.kind == "uniform":
            return 2 * (values + noise.clamp(max=1 - self.levels * torch.finfo(noise.dtype).eps)) / self.levels - 1
        return 2 * values / (self.levels - 1) - 1 + (self.noise_final if noise_std is None else noise_std) * noise

    def quantise(self, images: Tensor) -> Tensor:
        """Continuous images (B,C,H,W) back to grey levels 0..L-1, as bytes."""
        unit = (images.clamp(-1, 1) + 1) / 2
        values = (unit * self.levels).floor() if self.kind == "uniform" else (unit * (self.levels - 1)).round()
        return values.clamp(0, self.levels - 1).to(torch.uint8)

    def without_noise(self, images: Tensor) -> Tensor:
        """The grey levels of continuous images (B,C,H,W), as images in [-1, 1] to look at (not for `log_prob`)."""
        return 2 * self.quantise(images).to(images.dtype) / (self.levels - 1) - 1


def nats_to_bits_per_dim(log_prob: Tensor, dimensions: int, levels: int) -> Tensor:
    """Discrete bits/dim from the log-density of uniformly dequantised images: -log p / (d ln 2) + log2(L / 2).

    `log_prob` (B,), nats per image, of x = 2 (v + u) / L - 1; `dimensions` d = C H W. A cell of that x is 2/L wide,
    hence the constant: 7 for 256 levels. The only place in this package where nats become bits.

    >>> import math
    >>> import torch
    >>> from farmer_ref import nats_to_bits_per_dim
    >>> uniform = torch.tensor([64 * math.log(1 / 2)])  # density 1/2 on [-1, 1] in each of 64 dimensions
    >>> nats_to_bits_per_dim(uniform, dimensions=64, levels=256)
    tensor([8.])
    """
    return -log_prob / (dimensions * math.log(2)) + math.log2(levels / 2)


class Patchify(nn.Module):
    """Patches and back: images (B,C,H,W) to tokens (B,N,D), in an orthonormal basis of the patch.

    Patches run row by row; the channels of a patch are ordered (colour, row, column) as in `F.unfold` and TARFlow.
    The paper's basis is `pixel`. Another one (log-determinant 0) helps because a block of the flow scales and shifts
    each channel of a token by itself (see `flow.FlowBlock`), and later blocks can tie them together only by way of
    other tokens. `pca` must be fitted once, on training images; what it learned is stored with the weights.

    >>> import torch
    >>> from farmer_ref.model.tokens import Patchify
    >>> patchify = Patchify(8, 3, patch_size=4)
    >>> x = patchify(torch.zeros(2, 3, 8, 8))
    >>> x.shape, patchify.inverse(x).shape  # N = 4, D = 48
    (torch.Size([2, 4, 48]), torch.Size([2, 3, 8, 8]))
    """

    mean: Tensor
    matrix: Tensor
    fitted: Tensor

    def __init__(self, image_size: int, channels: int, *, patch_size: int, basis: str = "pixel"):
        super().__init__()
        self.image_size, self.channels, self.patch_size, self.basis = image_size, channels, patch_size, basis
        self.tokens = (image_size // patch_size) ** 2
        token_channels = channels * patch_size**2
        self.register_buffer("mean", torch.zeros(token_channels))  # (D,)
        self.register_buffer("matrix", torch.eye(token_channels))  # (D,D), rows are the basis vectors
        self.register_buffer("fitted", torch.tensor(basis != "pca"))
        self._seen_fitted = basis != "pca"
        if basis == "dct":
            self.matrix.copy_(dct_basis(channels, patch_size))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.tokens} tokens of {self.matrix.shape[0]} channels, basis={self.basis}"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which images are computed, whatever theirs: that of the weights, but at least float32."""
        return float32_at_least(self.matrix.dtype)

    def _cut(self, images: Tensor) -> Tensor:
        batch, p, side = images.shape[0], self.patch_size, self.image_size // self.patch_size
        patches = images.reshape(batch, self.channels, side, p, side, p)  # B,C,row,p,column,p
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, self.tokens, self.channels * p * p)  # B,N,D

    def _rows(self) -> Tensor:
        """The basis (D,D), orthonormal to the precision in use."""
        matrix = self.matrix.to(self.dtype)
        if self.matrix.dtype != torch.float32:  # stored less precisely than used: Newton steps square the error
            for _ in range(3):
                matrix = 1.5 * matrix - 0.5 * matrix @ matrix.T @ matrix
        return matrix

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Fit the PCA basis on training images (B,C,H,W) in [-1, 1]; the other bases have nothing to fit.

        Channels are sorted by falling variance. Centred, never whitened: dividing by the deviation of a pixel that is
        nearly always 0 blows up at once.
        """
        if self.basis != "pca":
            return
        self.check_images(checked_images(images))
        mean, matrix = pca_basis(self._cut(images.to(torch.float64)).flatten(0, 1))
        self.mean.copy_(mean)
        self.matrix.copy_(matrix)
        self.fitted.fill_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) to tokens (B,N,D) of `dtype`. Volume-preserving: the log-determinant is 0."""
        self.check_images(images)
        patches = self._cut(images.to(self.dtype))
        if self.basis == "pixel":
            return patches
        self.check_fitted()
        with full_precision(images):
            return (patches - self.mean) @ self._rows().T

    def check_images(self, images: Tensor) -> None:
        """Raise `InputError` where images are not floats of shape (B,C,H,W)."""
        expected = (self.channels, self.image_size, self.image_size)
        if images.dim() != 4 or images.shape[1:] != expected:
            raise InputError(
                f"images have shape {tuple(images.shape)}; allowed: (batch, {', '.join(map(str, expected))})"
            )
        if not images.is_floating_point():
            raise InputError(f"images are {images.dtype}; allowed: numbers in [-1, 1], as model.dequantiser gives")

    def inverse(self, tokens: Tensor) -> Tensor:
        """Tokens (B,N,D) to images (B,C,H,W) of `dtype`."""
        tokens = tokens.to(self.dtype)
        if self.basis != "pixel":
            self.check_fitted()
            with full_precision(tokens):
                tokens = tokens @ self._rows() + self.mean
        batch, p, side = tokens.shape[0], self.patch_size, self.image_size // self.patch_size
        patches = tokens.reshape(batch, side, side, self.channels, p, p)  # B,row,column,C,p,p
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, self.channels, self.image_size, self.image_size)

    def check_fitted(self) -> None:
        """Raise `InputError` where the basis is PCA and `fit` was not called; a graph that is exported has no check."""
        if not self._seen_fitted and not torch.compiler.is_exporting():
            if not self.fitted:
                raise InputError(
                    "patch_basis is 'pca' and not fitted; call patchify.fit(training images) once, before training"
                )
            self._seen_fitted = True  # reading a tensor makes a GPU wait, so only once
