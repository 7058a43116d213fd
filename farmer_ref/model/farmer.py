"""FARMER on one page: patches, the flow, the prior, and the exact likelihood and samples that they give together.

A flow is an invertible map from an image X to a latent Z of the same size. If we know the density of Z, we know that of
X: the density of Z at the mapped point, times |det dZ/dX|, the factor by which the map stretches volume at X, so that
the total probability stays 1 (change of variables). FARMER learns the map and, with a transformer that predicts one
token of Z from those before it (an autoregressive model), the density of Z. Sampling draws Z and inverts the map.

    image --patchify--> X --flow--> Z, log|det| --split--> Z_I, Z_R --prior--> mixtures --> log p(Z)
    log p(image | c) = log p(Z_I | c) + log p(Z_R | Z_I, c) + log|det dZ/dX|

Legend: B batch, C colour channels, H = W image size, N tokens, D channels of a token, c the class label; Z_I and Z_R
are the informative and the redundant channels of Z. A log-density is a per-image sum in nats, (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from farmer_ref.model.checks import checked_images, checked_labels, evaluating, with_gradients
from farmer_ref.model.config import ModelConfig
from farmer_ref.model.coupling import CouplingFlow
from farmer_ref.model.flow import AutoregressiveFlow, Flow
from farmer_ref.model.guidance import Guidance
from farmer_ref.model.jacobi import inverse_jacobi
from farmer_ref.model.noise import LearnedNoise
from farmer_ref.model.pixels import PIXELS
from farmer_ref.model.pretrained import Pretrained
from farmer_ref.model.prior import AutoregressivePrior
from farmer_ref.model.tokens import Dequantiser, Patchify
from farmer_ref.model.transformer import TrainingPass
from farmer_ref.support.errors import InputError, require_finite

DENOISING_BYTES = 2**31  # of activations that are kept for a gradient at a time


class LikelihoodTerms(NamedTuple):
    """The three parts of log p(image | c), each (B,), in nats; `total` is their exact sum."""

    informative: Tensor
    redundant: Tensor
    logdet: Tensor

    @property
    def total(self) -> Tensor:
        """log p(image | c) (B,), nats."""
        return self.informative + self.redundant + self.logdet


def negative_log_likelihood(terms: LikelihoodTerms, dimensions: int) -> Tensor:
    """The training loss, -log p(image | c) / (N D), mean over the batch: a scalar, nats per dimension   (Eq. 13).

    With a split of the channels it is Eq. 14. `dimensions` is N D, the number of values in one image.
    """
    return -terms.total.mean() / dimensions


class Farmer(Pretrained, nn.Module):
    """An exact density of images, and a sampler of it: p(x | c) = p(Z | c) |det dZ/dX|   (Eqs. 2 and 6)

    Images (B,C,H,W) lie in [-1, 1] and are already dequantised; labels are (B,), -1 or None meaning "no label".
    The precision is that of the weights, regardless of the images' dtype (`patchify` converts them), with one
    exception: after `model.bfloat16()` only weights and transformers are in half precision, while images, latents,
    log-determinants, mixtures and densities stay in float32, because bfloat16 can neither invert an affine map nor
    separate adjacent grey levels.

    >>> import torch
    >>> from farmer_ref import PRESETS, Farmer
    >>> model = Farmer(PRESETS["tiny"].model)  # untrained; `from_pretrained` loads trained ones
    >>> images, labels = torch.zeros(2, 1, 8, 8), torch.tensor([3, -1])
    >>> z, logdet = model.encode(images, labels)
    >>> z.shape, logdet.shape
    (torch.Size([2, 16, 4]), torch.Size([2]))
    >>> torch.allclose(model.decode(z, labels), images, atol=1e-5)
    True
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.dequantiser = Dequantiser(
            config.dequantisation, config.levels, noise_start=config.noise_start, noise_final=config.noise_final
        )
        self.noise = LearnedNoise(config.channels, config.levels, config.noise_width)
        self.pixels = PIXELS[config.pixels](config.channels, config.levels)
        self.patchify = Patchify(
            config.image_size, config.channels, patch_size=config.patch_size, basis=config.patch_basis
        )
        flow = AutoregressiveFlow if config.flow == "autoregressive" else CouplingFlow
        self.flow: Flow = flow(config.tokens, config.token_channels, **config.flow_settings())
        self.prior = AutoregressivePrior(
            config.tokens,
            config.token_channels,
            layers=config.prior_layers,
            width=config.prior_width,
            head_dim=config.head_dim,
            num_classes=config.num_classes,
            components=config.components,
            informative=config.informative,
            informative_channels=config.informative_channels,
            redundant_components=config.redundant_components,
            redundant_prior=config.redundant_prior,
            condition_repeats=config.condition_repeats,
            reverse=config.prior_reversed,
            dropout=config.dropout,
        )

    # -- likelihood ------------------------------------------------------------------------------------------------

    def forward(
        self, images: Tensor, labels: Tensor | None = None, training: TrainingPass | None = None
    ) -> LikelihoodTerms:
        """The terms of log p(images | labels), each (B,), nats: what training maximises   (Eq. 6)."""
        x, log_slope = self.to_tokens(images)
        z, logdet = self.flow(x, labels, training)
        return LikelihoodTerms(*self.prior.log_prob_parts(z, labels, training), logdet + log_slope)

    def likelihood_terms(self, images: Tensor, labels: Tensor | None = None) -> LikelihoodTerms:
        """`forward` with its arguments checked: .informative, .redundant, .logdet, each (B,), and .total."""
        return self(checked_images(images), self._labels(labels, len(images)))

    def log_prob(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(images | labels) (B,), nats per image   (Eq. 6).

        >>> import torch
        >>> from farmer_ref import Farmer
        >>> model = Farmer.from_pretrained("digits")
        >>> three = model.sample(torch.tensor([3]), generator=torch.Generator().manual_seed(0))
        >>> log_p = model.log_prob(three.expand(10, -1, -1, -1), torch.arange(10))  # as each of the ten digits
        >>> log_p.shape, log_p.argmax().item()
        (torch.Size([10]), 3)
        """
        return self.likelihood_terms(images, labels).total

    # -- the flow's two directions ---------------------------------------------------------------------------------

    def to_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,C,H,W) to tokens x (B,N,D), the flow's input, and the log-determinant of that step (B,).

        It is 0 except in the histogram's coordinates (`pixels`, ours) and with learned noise (`noise`, ours).
        """
        self.patchify.check_images(images)
        images, log_moved = self.noise(images.to(self.patchify.dtype))
        images, log_slope = self.pixels(images)
        return self.patchify(images), log_moved + log_slope

    def to_images(self, x: Tensor) -> Tensor:
        """The inverse of `to_tokens`: tokens (B,N,D) to images (B,C,H,W)."""
        return self.noise.inverse(self.pixels.inverse(self.patchify.inverse(x)))

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images to latents z (B,N,D) and log|det| (B,)."""
        x, log_slope = self.to_tokens(checked_images(images))
        z, logdet = self.flow(x, self._labels(labels, len(images)))
        return z, logdet + log_slope

    def decode(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        student: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        method: str = "sequential",
        progress: bool = False,
    ) -> Tensor:
        """Latents z (B,N,D) to images (B,C,H,W), not clipped: the inverse of `encode`.

        Exact, token by token (`method="sequential"`) or in parallel ("jacobi"), or approximate, with a student.
        """
        _check_method(method, student)
        self.flow.check_shape("z", z)
        labels = self._labels(labels, len(z))
        with evaluating(self, *([student] if isinstance(student, nn.Module) else [])):
            if student is not None:
                return self.to_images(student(z, labels))
            if method == "jacobi" and isinstance(self.flow, AutoregressiveFlow):  # a coupling flow needs no sweeps
                return self.to_images(inverse_jacobi(self.flow, z, labels)[0])
            return self.to_images(self.flow.inverse(z, labels, progress=progress))

    # -- samples ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        guidance: Guidance | None = None,
        *,
        student: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        method: str = "sequential",
        redundant_temperature: float = 1.0,
        denoise: bool = False,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Tensor:
        """One image for each label (B,): (B,C,H,W), clipped to [-1, 1]. -1 asks for any class.

        `student` or `method` decode the latents; `denoise` removes the noise in samples of a Gaussian-noise model.

        >>> import torch
        >>> from farmer_ref import Farmer, Guidance
        >>> model = Farmer.from_pretrained("digits")
        >>> labels, generator = torch.arange(10), torch.Generator().manual_seed(0)
        >>> images = model.sample(labels, Guidance(scale=1.5), generator=generator)
        >>> images.shape, bool(images.abs().max() <= 1)
        (torch.Size([10, 1, 8, 8]), True)
        """
        if (labels := self._labels(labels)) is None:
            raise InputError("labels are None; allowed: one for each image, -1 for any class")
        if guidance is not None and guidance.scale and not self.config.num_classes:
            raise InputError(f"guidance scale is {guidance.scale}; allowed: 0 in a model without labels")
        _check_method(method, student)
        if denoise:
            self._require_noise()
        z = self.prior.sample(
            labels, guidance, redundant_temperature=redundant_temperature, generator=generator, progress=progress
        )
        images = self.decode(z, labels, student=student, method=method, progress=progress)
        images = self.denoise(images, labels) if denoise else images
        require_finite("images", images, "weights, guidance and temperatures that give finite samples")
        return images.clamp(-1, 1)

    def denoise(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[clean image | noisy image] = x + sigma^2 grad_x log p(x | c), where p is the density of noisy images.

        Tweedie's formula, as in TARFlow (§2.5 there); sigma is the noise at the end of training, which samples carry.
        Raises `InputError` for a model without Gaussian noise.
        """
        self._require_noise()
        self.patchify.check_images(images := checked_images(images))
        labels = self._labels(labels, len(images))
        count = max(1, DENOISING_BYTES // self.config.gradient_bytes)  # images at a time, so that memory is bounded
        parts = [None] * len(images) if labels is None else labels.split(count)
        scores = [torch.empty_like(images[:0])]
        for some, those in zip(images.split(count), parts, strict=False):
            with evaluating(self), with_gradients(some, those) as (noisy, own):
                recomputing = TrainingPass(torch.arange(len(noisy)), len(noisy), recompute=True)
                log_prob = self(noisy.requires_grad_(), own, recomputing).total
                scores += torch.autograd.grad(log_prob.sum(), noisy)
        return images + self.config.noise_final**2 * torch.cat(scores)

    def _require_noise(self) -> None:
        if self.config.dequantisation != "gaussian":
            raise InputError(
                "denoise is True with uniform dequantisation; allowed: True for a model trained with 'gaussian' noise"
            )

    def _labels(self, labels: Tensor | Sequence[int] | None, count: int | None = None) -> Tensor | None:
        return checked_labels(labels, count, classes=self.config.num_classes, device=self.patchify.matrix.device)


def _check_method(method: str, student: object) -> None:
    if method not in ("sequential", "jacobi"):
        raise InputError(f"method is {method!r}; allowed: sequential, jacobi")
    if student is not None and method != "sequential":
        raise InputError(f"method is {method!r}, with a student; allowed: either a student or a method")
