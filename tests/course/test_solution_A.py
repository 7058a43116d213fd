"""The solutions of appendix A."""

import pytest
import solution_A
from helpers import solution_passes_starter
from solution_A import IMAGENET, largest_batch, plan

from farmer_ref import PRESETS
from farmer_ref.training.costs import peak_flops_of, training_flops


def test_what_fits_on_a_card_of_24_gib():
    found = [largest_batch("farmer-1.1b-p16", 24, processes, c) for processes in (1, 8) for c in (False, True)]
    assert found == [0, 1, 19, 76]


def test_no_budget_buys_nothing_and_the_paper_s_model_is_in_the_table():
    one = plan(16, 768)
    model = PRESETS["farmer-1.1b-p16"].model
    assert one.millions == pytest.approx(1145, abs=1)
    operations = one.epochs * IMAGENET * training_flops(model)
    assert operations == pytest.approx(100 * 3600 * 0.45 * peak_flops_of("H100"))
    assert plan(16, 768, hours=0).epochs == 0


def test_the_epochs_that_the_notebook_names():
    assert [round(plan(16, width).epochs) for width in (320, 384)] == [400, 289]
    assert 0.5 < 320 / plan(16, 256).epochs < 0.55  # "little more than half of the hours"
    assert round(peak_flops_of("H100") / 1e12) == 989
    assert round(plan(8, 192).epochs) == 188


@pytest.mark.parametrize("function", ["largest_batch", "plan"])
def test_the_solution_passes_the_starter(function):
    solution_passes_starter(solution_A, "A_scaling_up", function)
