"""The solutions of notebook 01b."""

import solution_01b
import torch
from conftest import small_flow
from helpers import solution_passes_starter
from solution_01b import bend, sweeps_at

from farmer_ref import Farmer
from farmer_ref.data.sets import batches, load_split
from farmer_ref.model.jacobi import inverse_jacobi


def test_blocks_that_read_one_way_are_one_block():
    flow, x = small_flow(4, 1, 4), torch.randn(5, 4, 1, dtype=torch.float64)
    assert bend(flow, x, 1) > 0.1
    for block in flow.blocks:
        block.reverse = False
    assert max(bend(flow, x, token) for token in range(4)) < 1e-9
    solution_passes_starter(solution_01b, "01b_flow_invertibility", "bend")


def test_strong_dependence_takes_more_sweeps():
    model = Farmer.from_pretrained("digits").double()
    values, _ = next(batches(load_split("digits", "test", model.config), 20))
    noise = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
    tokens, _ = model.to_tokens(model.dequantiser(values, noise).double())
    before = model.flow.blocks[0].project_out.weight.clone()
    sweeps = [max(sweeps_at(model.flow, tokens, strength)) for strength in (0, 0.5, 1, 2, 4)]
    assert sweeps == sorted(sweeps) and sweeps[0] == 1 and sweeps[-1] == 15
    assert torch.equal(model.flow.blocks[0].project_out.weight, before)  # the flow itself stays as it is
    with torch.no_grad():
        report = inverse_jacobi(model.flow, model.flow(tokens)[0], tolerance=1e-5)[1]
    given = {"shipped": model, "tokens": tokens, "report": report}
    solution_passes_starter(solution_01b, "01b_flow_invertibility", "sweeps_at", **given)
