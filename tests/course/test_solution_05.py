"""The solutions of notebook 05."""

import pytest
import solution_05
import torch
from helpers import solution_passes_starter
from solution_05 import error_after, grey_levels_off, latents, student_of_form, swept

from book.pages import load
from farmer_ref import Farmer, OneStepStudent


@pytest.fixture(scope="module")
def model():
    return Farmer.from_pretrained("digits")


@pytest.fixture(scope="module")
def student(model):
    return OneStepStudent.from_pretrained("digits", model.flow)


@pytest.fixture(scope="module")
def z(model):
    return latents(model)


@pytest.fixture(scope="module")
def exact(model, z):
    return model.flow.inverse(z)


def test_two_sweeps_are_about_as_good_as_a_student_and_one(model, student, z, exact):
    guess = [grey_levels_off(model, swept(model.flow, z, passes - 1, student), exact) for passes in (1, 2, 3)]
    plain = [grey_levels_off(model, swept(model.flow, z, passes), exact) for passes in (1, 2, 3)]
    assert guess[0] < 0.8 * plain[0]
    assert guess[1:] == pytest.approx(plain[1:], rel=0.25)
    assert guess[0] > guess[1] > guess[2] and plain[0] > plain[1] > plain[2]
    assert (
        grey_levels_off(model, swept(model.flow, z[:20], 15, student), exact[:20]) < 1e-4
    )  # N - 1: exact from any start


def test_the_error_of_the_shipped_student_is_the_recorded_one(model, student, z, exact):
    """Notebook, benchmark and record mean the same latents and the same clamped pixels."""
    recorded = load("student")["runs"][0]["sample_error"] / (2 / 17)
    assert grey_levels_off(model, student(z), exact) == pytest.approx(recorded, abs=0.01)


def test_the_forms_before_training(model):
    z = torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(student_of_form(model.flow, "inverse, masked")(z), swept(model.flow, z, 1), atol=1e-5)
    for form in ("forward", "inverse"):
        untrained = OneStepStudent.from_teacher(model.flow, form=form)
        assert torch.equal(student_of_form(model.flow, form)(z), untrained(z))


def test_the_forward_form_starts_far_off_and_learns_later(model):
    forward, inverse, masked = (
        [error_after(model, form, steps, 0) for steps in (0, 100)] for form in ("forward", "inverse", "inverse, masked")
    )
    assert forward[0] > 3 * inverse[0] > 5 * masked[0]
    assert forward[1] > 1.2 * inverse[1] and forward[1] < forward[0] / 3
    assert masked[1] < inverse[1] < inverse[0]


def test_the_order_of_forms_and_losses_that_the_notebook_states():
    forms, losses = (
        {name: row["sample_error"]["mean"] for name, row in load(record)["table"].items()}
        for record in ("distillation", "distillation_losses")
    )
    assert losses["inverse/hidden"] < losses["inverse/projected"] < losses["inverse/output"]
    assert forms["inverse/hidden"] < forms["forward/hidden"]


@pytest.mark.parametrize("function", ["swept", "student_of_form"])
def test_the_solution_passes_the_starter(function):
    solution_passes_starter(solution_05, "05_distillation", function)
