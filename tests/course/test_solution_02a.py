"""The solutions of notebook 02a."""

import math

import pytest
import solution_02a
import torch
from conftest import jacobian
from helpers import solution_passes_starter
from solution_02a import RecurrentPrior, bits_with, both_priors, train_prior, training_latents
from torch.distributions import Normal

from farmer_ref import Farmer


def test_the_asserts_of_the_starter_cells_hold():
    solution_passes_starter(solution_02a, "02a_ar_likelihood", "as_block", Normal=Normal)
    solution_passes_starter(solution_02a, "02a_ar_likelihood", "recurrent_prior")


def test_the_recurrent_prior_reads_only_what_was_before():
    torch.manual_seed(0)
    prior = RecurrentPrior(5, 2, 1, 8, 3, 2).double()
    torch.nn.init.normal_(prior.head.weight)
    label = torch.tensor([1])
    matrix = jacobian(lambda z: prior.mixtures(z, label).mean, torch.randn(1, 5, 2).double())
    seen = matrix.view(5, -1, 5, 2).abs().amax((1, 3)) > 0
    assert torch.equal(seen, torch.ones(5, 5).tril(-1).bool())


def test_both_priors_have_about_as_many_parameters_and_learn():
    shipped = Farmer.from_pretrained("digits")
    latents, labels = training_latents(shipped, 1)
    priors = both_priors()
    sizes = [sum(parameter.numel() for parameter in prior.parameters()) for prior in priors.values()]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    for prior in priors.values():
        before = bits_with(shipped, prior, "validation")
        train_prior(prior, latents, labels, 4, 6e-3)
        assert bits_with(shipped, prior, "validation") < min(before, math.log2(17)) - 0.5
