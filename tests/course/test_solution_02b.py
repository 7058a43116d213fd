"""The solutions of notebook 02b."""

import math

import solution_02b
import torch
from helpers import solution_passes_starter
from solution_02b import pixel_bits, weighted_bounds

from farmer_ref import Farmer
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import bits_per_dim, terms_over_draws
from farmer_ref.model.tokens import nats_to_bits_per_dim


def test_the_asserts_of_the_starter_cells_hold():
    solution_passes_starter(solution_02b, "02b_bits_per_dim", "exact_bits")
    solution_passes_starter(solution_02b, "02b_bits_per_dim", "weighted_bounds", math=math)


def test_the_bound_lies_above_the_exact_bits_and_meets_them_where_the_mixture_is_smooth():
    exact, bound = pixel_bits(0.04)
    assert 0.03 < bound - exact < 0.07
    exact, bound = pixel_bits(0.1)
    assert 0 < bound - exact < 0.01


def test_more_draws_lower_the_bound_and_all_of_them_give_that_of_the_package():
    model = Farmer.from_pretrained("digits")
    values, labels = next(batches(load_split("digits", "test", model.config), 8))
    bounds = weighted_bounds(terms_over_draws(model, values, labels, draws=16, seed=0).total, [1, 4, 16])
    assert bounds[0] > bounds[1] > bounds[2]
    packaged = bits_per_dim(model, values, labels, draws=16, importance_weighted=True).mean()
    assert torch.isclose(nats_to_bits_per_dim(-bounds[2], 64, 17), packaged, rtol=1e-5)
