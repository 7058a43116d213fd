"""The solutions of notebook 01."""

import torch
from conftest import small_flow
from solution_01 import bend, fit_three_modes, unshifted


def test_without_the_shift_the_matrix_is_triangular_and_the_sum_wrong():
    block, x = small_flow(4, 2, 1).blocks[0], torch.randn(1, 4, 2, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(
        lambda flat: unshifted(block, flat.view(1, 4, 2))[0].flatten(), x.flatten()
    )
    parts = matrix.view(4, 2, 4, 2).norm(dim=(1, 3))
    assert parts.triu(1).max() == 0
    assert abs(matrix.slogdet().logabsdet - unshifted(block, x)[1]) > 1e-3


def test_blocks_that_read_one_way_are_one_block():
    flow, x = small_flow(4, 1, 4), torch.randn(5, 4, 1, dtype=torch.float64)
    assert bend(flow, x, 1) > 0.1
    for block in flow.blocks:
        block.reverse = False
    assert max(bend(flow, x, token) for token in range(4)) < 1e-9


def test_a_mixture_separates_what_one_gaussian_cannot():
    (few, bridged), (mixed, apart) = fit_three_modes(2, 1, 300), fit_three_modes(2, 3, 300)
    assert few > 0.4 and bridged > 0.1
    assert mixed < 0.15 and apart < 0.03
