"""Inpainting against a conditional that is known by integration, edits, anomaly scores, Bayes' rule."""

import pytest
import torch
from conftest import randomise_zeros

from farmer_ref import Farmer, ModelConfig, applications

TINY = {
    "image_size": 2,
    "channels": 1,
    "levels": 3,
    "patch_size": 1,
    "num_classes": 2,
    "flow_blocks": 2,
    "flow_layers": 1,
    "flow_width": 8,
    "prior_layers": 1,
    "prior_width": 8,
    "head_dim": 8,
    "informative": None,
    "components": 2,
    "condition_repeats": 1,
    "max_log_scale": 0.7,
}
KNOWN = torch.tensor([[[True, False], [False, True]]])
GIVEN = torch.tensor([[[[2, 0], [0, 1]]]], dtype=torch.uint8)
COPIES, PARTICLES = 40, 48


@pytest.fixture(scope="module")
def tiny():
    """A density of four pixels, in float64, no weight at zero."""
    torch.manual_seed(0)
    model = randomise_zeros(Farmer(ModelConfig(**TINY)), std=0.25)
    return model.requires_grad_(False)


def grid(low, high, count):
    """Midpoints of `count` equal intervals."""
    return low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.fixture(scope="module")
def exact(tiny):
    """The missing pixels' density on a grid, given that the known ones lie in their cells: points (n,2), weights (n,).

    By integration over the four pixels: midpoints of 6 x 6 places in the cells, 48 x 48 of the missing pixels.
    """
    cells = [grid(2 * int(v) / 3 - 1, 2 * int(v) / 3 - 1 / 3, 6) for v in GIVEN.flatten()[KNOWN.flatten()]]
    axis = grid(-7, 7, 48)
    first, a, b, last = torch.meshgrid(cells[0], axis, axis, cells[1], indexing="ij")
    images = torch.stack([first, a, b, last], -1).reshape(-1, 1, 2, 2)
    label = torch.ones(len(images), dtype=torch.long)
    log_p = torch.cat([tiny.log_prob(*parts) for parts in zip(images.split(20_000), label.split(20_000), strict=True)])
    weights = torch.softmax(log_p, 0).view(6, 48, 48, 6).sum((0, 3)).flatten()
    return torch.cartesian_prod(axis, axis), weights


def drawn(tiny, seed=0, moves=15):
    """Many missing pixels (n,2), as `inpaint` draws them: continuous, before they become grey levels."""
    images = []
    keep, tiny.dequantiser.quantise = tiny.dequantiser.quantise, lambda x: images.append(x) or torch.zeros_like(x)
    try:
        labels = torch.ones(COPIES, dtype=torch.long)
        given = GIVEN.expand(COPIES, -1, -1, -1)
        generator = torch.Generator().manual_seed(seed)
        applications.inpaint(tiny, given, KNOWN, labels, PARTICLES, PARTICLES, moves=moves, generator=generator)
    finally:
        tiny.dequantiser.quantise = keep
    return images[0].flatten(2)[..., ~KNOWN.flatten()]  # (COPIES,PARTICLES,2)
