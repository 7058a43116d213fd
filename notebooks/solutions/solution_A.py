"""Solutions of appendix A: the largest batch for a card, and what a budget of GPU hours can train."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from farmer_ref import PRESETS
from farmer_ref.parameters import count
from farmer_ref.training.costs import peak_flops_of, saved_bytes, state_bytes, training_flops

IMAGENET = 1_281_167  # training images


class Plan(NamedTuple):
    """A model within a budget."""

    millions: float
    """Parameters."""
    gflop: float
    """Operations of a training step, for an image."""
    epochs: float
    """Of ImageNet, within the budget."""


def largest_batch(name: str, gib: float, processes: int = 1, checkpoints: bool = False) -> int:
    """Images of a step that fit on each GPU of so many GiB, a tenth of it left free."""
    preset = PRESETS[name]
    state = state_bytes(count(preset.model)["total"], processes)
    image = saved_bytes(
        preset.model, checkpoint_activations=checkpoints, precision=preset.precision
    )
    return max(0, int((0.9 * gib * 2**30 - state) // image))


def plan(patch_size: int, width: int, hours: float = 100, utilisation: float = 0.45) -> Plan:
    """What `hours` of an H100 give the 1.1B model at another patch size and another width of both parts."""
    changes = {"patch_size": patch_size, "informative": 3 * patch_size**2 // 6}
    widths = {"flow_width": width, "prior_width": width}
    model = dataclasses.replace(PRESETS["farmer-1.1b-p16"].model, **changes, **widths)
    images = hours * 3600 * utilisation * peak_flops_of("H100") / training_flops(model)
    return Plan(count(model)["total"] / 1e6, training_flops(model) / 1e9, images / IMAGENET)


if __name__ == "__main__":
    for processes in (1, 8):
        plain, checkpointed = (
            largest_batch("farmer-1.1b-p16", 24, processes, checkpoints)
            for checkpoints in (False, True)
        )
        print(
            f"24 GiB, {processes} card(s): {plain} images on each, with checkpoints {checkpointed}"
        )
    print("100 hours of an H100 at 45% of its peak")
    for patch_size in (16, 8):
        for width in (192, 256, 320, 384, 512, 768):
            found = plan(patch_size, width)
            print(
                f"patch {patch_size:2d}, width {width}: {found.millions:6.0f} million parameters, "
                f"{found.gflop:6,.0f} GFLOP, {found.epochs:6.0f} epochs"
            )
