"""The solutions of notebook 05."""

import pytest
import torch
from solution_05 import error_after, grey_levels_off, levels_of, student_of_form, swept

from farmer_ref import Farmer, OneStepStudent
from farmer_ref.data.sets import batches, load_split


@pytest.fixture(scope="module")
def model():
    return Farmer.from_pretrained("digits")


@pytest.fixture(scope="module")
def student(model):
    return OneStepStudent.from_pretrained("digits", model.flow)


def test_two_sweeps_are_better_than_a_student_and_one(model, student):
    z = model.prior.sample(torch.arange(500) % 10, generator=torch.Generator().manual_seed(0))
    exact = model.flow.inverse(z)
    guess = [grey_levels_off(swept(model.flow, z, passes - 1, student), exact) for passes in (1, 2, 3)]
    plain = [grey_levels_off(swept(model.flow, z, passes), exact) for passes in (1, 2, 3)]
    assert guess == pytest.approx([0.76, 0.18, 0.03], abs=0.02)
    assert plain == pytest.approx([1.07, 0.14, 0.02], abs=0.02)
    assert grey_levels_off(swept(model.flow, z[:20], 15, student), exact[:20]) < 1e-4  # N - 1: exact from any start
    assert grey_levels_off(swept(model.flow, z, 1), exact) > grey_levels_off(student(z), exact)


def test_the_masked_form_is_one_sweep_before_training(model):
    z = torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(student_of_form(model.flow, "inverse, masked")(z), swept(model.flow, z, 1), atol=1e-5)
    assert torch.equal(student_of_form(model.flow, "inverse")(z), OneStepStudent.from_teacher(model.flow)(z))


def test_the_forward_form_starts_far_off_and_learns_later(model, student):
    forms = ("inverse", "inverse, masked", "forward")
    before, after = ([error_after(model, form, steps, 0) for form in forms] for steps in (0, 100))
    assert before == pytest.approx([1.46, 1.05, 202], rel=0.05)
    assert after == pytest.approx([0.71, 0.57, 1.54], abs=0.1)
    values = next(batches(load_split("digits", "validation", model.config), 100))[0]
    levels = levels_of(model, values, torch.Generator().manual_seed(0))
    assert grey_levels_off(student(levels[-1]), levels[0]) == pytest.approx(0.51, abs=0.02)
