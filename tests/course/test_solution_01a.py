"""The solutions of notebook 01a."""

import solution_01a
import torch
from conftest import small_flow
from helpers import solution_passes_starter
from solution_01a import unshifted

from farmer_ref import Farmer


def test_without_the_shift_the_matrix_is_triangular_and_the_sum_wrong():
    block, x = small_flow(4, 2, 1).blocks[0], torch.randn(1, 4, 2, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(
        lambda flat: unshifted(block, flat.view(1, 4, 2))[0].flatten(), x.flatten()
    )
    parts = matrix.view(4, 2, 4, 2).norm(dim=(1, 3))
    assert parts.triu(1).max() == 0
    assert abs(matrix.slogdet().logabsdet - unshifted(block, x)[1]) > 1e-3


def test_a_mixture_separates_what_one_gaussian_cannot():
    solution_passes_starter(solution_01a, "01a_change_of_variables", "fit_three_modes")


def test_the_starter_waits_for_the_forgotten_shift():
    given = {"block": small_flow(16, 4, 1).blocks[0], "digit": torch.randn(1, 16, 4, dtype=torch.float64)}
    given["jacobian"] = torch.autograd.functional.jacobian
    solution_passes_starter(solution_01a, "01a_change_of_variables", "unshifted", **given)


def test_the_bound_that_the_notebook_quotes():
    assert Farmer.from_pretrained("digits").config.max_log_scale == 4
