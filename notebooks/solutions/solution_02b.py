"""Solutions of notebook 02b: the exact probability of a grey level, and how far the importance-weighted bound falls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from farmer_ref import Farmer, GaussianMixture, nats_to_bits_per_dim
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import terms_over_draws


def exact_bits(pixel: GaussianMixture, share: Tensor) -> float:
    """Mean -log2 P(v) over grey levels v with these shares (L,): P(v) is the mass in the cell of v."""
    edges = torch.linspace(-1, 1, len(share) + 1, dtype=torch.float64)[:, None]  # (L+1,1)
    below = torch.special.ndtr((edges - pixel.mean[:, 0]) / pixel.log_scale[:, 0].exp())  # (L+1,K)
    mass = (below @ pixel.logits.double().softmax(0)).diff()  # (L,)
    return -(share * mass.log2()).sum().item()


def pixel_bits(width: float, draws: int = 4000) -> tuple[float, float]:
    """Exact bits and dequantised bound of the notebook's mixture at one width, on the test pixels."""
    model = Farmer.from_pretrained("digits")
    values, _ = next(batches(load_split("digits", "test", model.config), 300))
    share = values.flatten().long().bincount(minlength=17).double() / values.numel()
    centre = 2 * (torch.arange(17, dtype=torch.float64) + 0.5) / 17 - 1
    log_scale = torch.full((17, 1), math.log(width), dtype=torch.float64)
    pixel = GaussianMixture(share.log(), centre[:, None], log_scale)
    noise = (torch.rand(draws, 17, generator=torch.Generator().manual_seed(0)) - 0.5).double()
    log_p = pixel.log_prob((centre + 2 / 17 * noise)[..., None]).mean(0) @ share
    return exact_bits(pixel, share), nats_to_bits_per_dim(log_p, 1, 17).item()


def weighted_bounds(total: Tensor, draws: list[int]) -> Tensor:
    """Importance-weighted bounds (len(draws),) on -log P, nats, from log p (S,B) of S draws: averaged over
    images and over all disjoint groups of so many draws."""
    bounds = []
    for count in draws:
        groups = total[: len(total) // count * count].unflatten(0, (-1, count))  # (groups,count,B)
        bounds.append(-(groups.logsumexp(1) - math.log(count)).mean())
    return torch.stack(bounds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for width in (0.03, 0.04, 0.05, 0.1):
        exact, bound = pixel_bits(width)
        print(f"width {width}: exact {exact:.3f}, dequantised {bound:.3f} bits/dim")
    model = Farmer.from_pretrained("digits")
    values, labels = next(batches(load_split("digits", "test", model.config), 20))
    total = terms_over_draws(model, values, labels, draws=1024, seed=0).total
    draws = [2**k for k in range(11)]
    for count, bound in zip(draws, weighted_bounds(total, draws), strict=True):
        print(f"{count:4} draws: {nats_to_bits_per_dim(-bound, 64, 17):.4f} bits/dim", flush=True)
    print(
        f"log p of an image varies by {total.std(0).mean():.2f} nats (standard deviation over draws)"
    )
