"""Edits in the latents: another class, other details, interpolation between images.

Legend: B images, C colour channels, H = W image size; Z_I and Z_R are the informative and redundant channels of the
latents, c the class label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from farmer_ref.model.checks import checked_labels, evaluating
from farmer_ref.model.farmer import Farmer
from farmer_ref.model.guidance import Guidance
from farmer_ref.support.errors import require


@torch.no_grad()
def change_class(
    model: Farmer,
    images: Tensor,
    labels: Tensor,
    new_labels: Tensor,
    *,
    guidance: Guidance | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images (B,C,H,W) under new labels (B,): keeps Z_R and redraws Z_I from p(Z_I | c). Not clipped."""
    _require_split(model)
    new_labels = checked_labels(new_labels, len(images), classes=model.config.num_classes, device=images.device)
    with evaluating(model):
        _, redundant = model.prior.split(model.encode(images, labels)[0])
        informative, _ = model.prior.split(model.prior.sample(new_labels, guidance, generator=generator))
        return model.decode(model.prior.merge(informative, redundant), new_labels)


@torch.no_grad()
def change_details(
    model: Farmer, images: Tensor, labels: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """Images (B,C,H,W) with other details: keeps Z_I and redraws Z_R from p(Z_R | Z_I, c). Not clipped."""
    _require_split(model)
    with evaluating(model):
        informative, _ = model.prior.split(model.encode(images, labels)[0])
        redundant = model.prior.sample_redundant(informative, labels, generator=generator)
        return model.decode(model.prior.merge(informative, redundant), labels)


@torch.no_grad()
def interpolate(model: Farmer, first: Tensor, second: Tensor, *, steps: int, latent: bool = True) -> Tensor:
    """Walk from `first` to `second`, (B,C,H,W) each, in `steps` images (B,steps,C,H,W), in the latents or in the
    pixels.

    The ends are the images themselves. The walk is linear, not spherical: a mixture has no single radius.
    """
    require(steps >= 2, "steps", steps, "2 or more")
    first, second = (images.to(model.patchify.dtype) for images in (first, second))
    share = torch.linspace(0, 1, steps, device=first.device, dtype=first.dtype)
    if not latent:
        return torch.lerp(first[:, None], second[:, None], share[:, None, None, None])
    with evaluating(model):
        ends = [model.encode(images)[0] for images in (first, second)]
        z = torch.lerp(ends[0][:, None], ends[1][:, None], share[:, None, None])  # (B,steps,N,D)
        return model.decode(z.flatten(0, 1)).unflatten(0, (len(first), steps))


def _require_split(model: Farmer) -> None:
    require(model.config.informative is not None, "informative", None, "a model with redundant channels")
