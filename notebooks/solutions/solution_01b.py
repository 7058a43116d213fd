"""Solutions of notebook 01b: blocks that all read one way, and how many sweeps a strongly coupled flow needs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from farmer_ref import AutoregressiveFlow, Farmer
from farmer_ref.data.sets import batches, load_split
from farmer_ref.model.jacobi import inverse_jacobi


def bend(flow: AutoregressiveFlow, x: Tensor, token: int) -> float:
    """How far z of one token is from a straight line as the same token of x moves: 0 for an affine map."""
    step = torch.zeros_like(x)
    step[:, token] = 0.5
    with torch.no_grad():
        low, middle, high = (flow(x + k * step)[0][:, token] for k in (-1, 0, 1))
    return (high - 2 * middle + low).abs().max().item()


def sweeps_at(flow: AutoregressiveFlow, x: Tensor, strength: float) -> list[int]:
    """Sweeps of every block, first to last, when the outputs of `project_out` are multiplied by `strength`."""
    stronger = copy.deepcopy(flow)
    for block in stronger.blocks:
        block.project_out.weight.data *= strength
        block.project_out.bias.data *= strength
    with torch.no_grad():
        z, _ = stronger(x)
    return inverse_jacobi(stronger, z, tolerance=1e-5)[1].sweeps


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = Farmer.from_pretrained("digits").double()
    values, _ = next(batches(load_split("digits", "test", model.config), 20))
    noise = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
    x, _ = model.to_tokens(model.dequantiser(values, noise))
    for strength in (0, 0.5, 1, 2, 4):
        print(
            f"strength {strength}: sweeps of the four blocks {sweeps_at(model.flow, x, strength)}"
        )
