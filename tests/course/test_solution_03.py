"""The solutions of notebook 03."""

import pytest
import solution_03
import torch
from helpers import solution_passes_starter
from solution_03 import clusters, patches, representatives, shares, trained_with, unexplained

from farmer_ref import Farmer

FIRST = list(range(12))


@pytest.fixture(scope="module")
def photographs():
    return patches("train"), patches("validation")


def test_the_asserts_of_the_starter_cells_hold():
    with torch.no_grad():
        solution_passes_starter(solution_03, "03_channel_partitioning", "exchange")
    solution_passes_starter(solution_03, "03_channel_partitioning", "clusters")


def test_the_informative_channels_decide_the_class_and_the_redundant_ones_nothing():
    model = Farmer.from_pretrained("mnist")
    none, few, informative, whole = shares(model, [0, 2, 8, 16], images=30)
    assert none[0] > 0.9 and none[1] < 0.1
    assert informative[0] < few[0] <= none[0] and informative[1] > few[1]
    assert informative[1] > 0.9 < whole[1]
    before, after = shares(model, [6, 7])  # where the donor wins
    assert before[1] < 0.5 and after[1] > 0.9


def test_three_clusters_are_the_three_colours(photographs):
    colours = clusters(photographs[0].T.corrcoef(), 3, "average")
    assert sorted(m.tolist() for m in colours) == [list(range(k, k + 16)) for k in (0, 16, 32)]


def test_a_linear_guess_likes_representatives_and_any_random_choice_better_than_the_first(photographs):
    chosen = representatives(photographs[0].T.corrcoef(), 12)
    assert len(set(chosen)) == 12
    generator = torch.Generator().manual_seed(0)
    random = torch.tensor(
        [unexplained(torch.randperm(48, generator=generator)[:12].tolist(), *photographs) for _ in range(100)]
    )
    assert unexplained(chosen, *photographs) < 0.02 < 0.1 < unexplained(FIRST, *photographs)
    assert random.max() < unexplained(FIRST, *photographs)
    assert random.mean() < 1.5 * unexplained(chosen, *photographs)


def test_training_likes_the_first_better(photographs):
    chosen = representatives(photographs[0].T.corrcoef(), 12)
    assert trained_with(FIRST, steps=50) < trained_with(chosen, steps=50) - 0.03
