"""The solutions of notebook 03."""

import pytest
import torch
from solution_03 import clusters, exchange, patches, representatives, trained_with, unexplained

from farmer_ref import Farmer
from farmer_ref.data.sets import batches, load_split

FIRST = list(range(12))


@pytest.fixture(scope="module")
def photographs():
    return patches("train"), patches("validation")


def test_only_the_redundant_channel_may_be_exchanged():
    model = Farmer.from_pretrained("digits")
    values, labels = next(batches(load_split("digits", "test", model.config), 300))
    images = model.dequantiser(values, torch.full(values.shape, 0.5))
    own, other = zip(*(exchange(model, images, labels, channel) for channel in range(4)), strict=True)
    assert own[3] > 0.95 and other[3] < 0.02
    assert own[2] < min(own[0], own[1]) < max(own[0], own[1]) < 0.9
    assert 0.1 < other[2] < own[2]


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
