"""Solutions of notebook 01a: the forgotten shift, and three modes for one Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from farmer_ref import AutoregressiveFlow, GaussianMixture
from farmer_ref.model.flow import FlowBlock

CENTRES = 2 * torch.tensor(
    [[math.cos(a), math.sin(a)] for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
)
WIDTH = 0.2  # of a mode
ENTROPY = math.log(3) + 1 + math.log(2 * math.pi * WIDTH**2)  # nats: the modes do not overlap


def unshifted(block: FlowBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """A block whose outputs were not shifted by one token: mu and sigma of token i have seen token i itself."""
    shift, log_scale = block.shift_and_log_scale(x, block.embedded_positions(None))
    return (x - shift) * log_scale.exp(), log_scale.sum((1, 2))


def three_modes(count: int, seed: int) -> Tensor:
    """Points (count,2,1): two tokens of one channel."""
    generator = torch.Generator().manual_seed(seed)
    mode = torch.randint(3, (count,), generator=generator)
    return (CENTRES[mode] + WIDTH * torch.randn(count, 2, generator=generator))[..., None]


def fit_three_modes(blocks: int, components: int, steps: int = 400) -> tuple[float, float]:
    """Nats above the entropy on fresh points, and the share of samples that lie in no mode."""
    torch.manual_seed(0)
    flow = AutoregressiveFlow(2, 1, blocks=blocks, layers=1, width=32, head_dim=16)
    mean = nn.Parameter(torch.randn(components, 2) * (components > 1))  # K = 1: the standard normal
    prior = GaussianMixture(torch.zeros(components), mean, nn.Parameter(torch.zeros(components, 2)))
    groups = [{"params": flow.parameters(), "lr": 5e-3}]
    if components > 1:
        groups.append({"params": [prior.mean, prior.log_scale], "lr": 5e-2})
    optimiser = torch.optim.Adam(groups)

    def loss(seed: int, count: int = 256) -> Tensor:
        z, logdet = flow(three_modes(count, seed))
        return -(prior.log_prob(z[..., 0]) + logdet).mean()

    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] *= 0.99
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()
    with torch.no_grad():
        z = prior.unsqueeze().expand(2000).sample(torch.Generator().manual_seed(0))
        distance = torch.cdist(flow.inverse(z[..., None])[..., 0], CENTRES).amin(1)
        return loss(steps, 4000).item() - ENTROPY, (distance > 4 * WIDTH).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for blocks, components in ((2, 1), (6, 1), (2, 3)):
        excess, between = fit_three_modes(blocks, components)
        print(
            f"{blocks} blocks, K = {components}: {excess:.2f} nats too many, {between:.1%} of samples in no mode"
        )
