"""The solutions of notebook 06."""

import pytest
import solution_06
import torch
from helpers import solution_passes_starter
from solution_06 import accuracy_of_the_surest, auroc, background, compare, strangers_to

from farmer_ref import Farmer
from farmer_ref.applications.anomalies import AnomalyScorer
from farmer_ref.applications.classification import class_log_probs, class_probabilities
from farmer_ref.data.sets import batches, load_split


@pytest.fixture(scope="module")
def splits():
    model = Farmer.from_pretrained("digits")
    names = ("train", "validation", "test")
    return model, *(next(batches(load_split("digits", name, model.config), 2000)) for name in names)


def test_the_surest_are_right_more_often(splits):
    model, _, _, (values, labels) = splits
    probabilities = class_probabilities(class_log_probs(model, values, draws=1, batch_size=300))
    found = [accuracy_of_the_surest(probabilities, labels, share) for share in (1.0, 0.9, 0.8)]
    assert found == pytest.approx([0.99, 0.996, 1.0], abs=0.004)


def test_a_background_is_a_distribution_and_ties_count_half(splits):
    _, (train, _), *_ = splits
    for positions in (True, False):
        log_h = background(train, 17, positions)
        assert log_h.shape == (1, 8, 8, 17)
        assert torch.allclose(log_h.exp().sum(-1), torch.ones(1, 8, 8, dtype=torch.float64))
    assert auroc(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])) == 0.625


def test_a_background_cures_blank_pages_and_knows_too_much(splits):
    model, (train, classes), (values, _), _ = splits
    scorer = AnomalyScorer(model, train[:500], classes[:500], draws=1)
    found = compare(scorer, train, values, strangers_to(values))
    order = ("likelihood", "against pixels", "against levels", "complexity")
    assert [found["blank"][name] for name in order] == pytest.approx([0.13, 0.98, 1.0, 1.0], abs=0.02)
    assert [found["shifted by one"][name] for name in order] == pytest.approx([0.92, 0.72, 0.97, 0.97], abs=0.02)


@pytest.mark.parametrize("function", ["accuracy_of_the_surest", "background"])
def test_the_solution_passes_the_starter(function):
    solution_passes_starter(solution_06, "06_applications", function)
