"""Bayes' rule over the labels, and how well calibrated it is."""

import math

import pytest
import torch
from conftest import small_model

from benchmarks.applications import fit_temperature
from farmer_ref import InputError
from farmer_ref.applications.classification import (
    class_log_probs,
    class_probabilities,
    expected_calibration_error,
    reliability,
)
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import terms_over_draws


def test_bayes_rule_is_that_of_the_densities(digits):
    values, labels = next(batches(load_split("digits", "validation", digits.config), 60, 60))
    log_probs = class_log_probs(digits, values, draws=2, seed=3, batch_size=60)
    with torch.no_grad():
        one = class_log_probs(digits, values, draws=1, seed=3, batch_size=60)
        first, second = terms_over_draws(digits, values, torch.full((60,), 4), draws=2, seed=3).total
    assert torch.allclose(one[:, 4], first, atol=1e-3)
    assert torch.allclose(log_probs[:, 4], torch.logaddexp(first, second) - math.log(2), atol=1e-3)
    assert torch.allclose(class_log_probs(digits, values, draws=2, seed=3, batch_size=7), log_probs, atol=1e-3)
    assert (log_probs >= one - math.log(2) - 1e-3).all()  # a mean is at least half of one of the two
    assert (class_probabilities(log_probs).argmax(1) == labels).double().mean() > 0.9
    with pytest.raises(InputError, match="classes is 0"):
        class_log_probs(small_model(num_classes=0), values)


def test_a_fitted_temperature_and_the_calibration_error():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial(torch.softmax(logits / 5, -1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits, labels) == pytest.approx(5, rel=0.05)
    said, meant = class_probabilities(logits), class_probabilities(logits, 5)
    assert expected_calibration_error(said, labels) > 0.2
    assert expected_calibration_error(meant, labels) < 0.02
    table = reliability(torch.tensor([[0.95, 0.05], [0.92, 0.08], [0.45, 0.55]]), torch.tensor([0, 1, 0]))
    assert [(row.images, row.accuracy) for row in table] == [(1, 0.0), (2, 0.5)]
    assert [row.confidence for row in table] == pytest.approx([0.55, 0.935])
