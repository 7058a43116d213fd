"""The order of training and the randomness of each image: functions of seed, step and image."""

import itertools

import pytest
import torch

from farmer_ref import PRESETS
from farmer_ref.data.order import Batch, random_seed, training_batches, training_images
from farmer_ref.data.sets import load_split
from farmer_ref.model.tokens import Dequantiser

DIGITS = PRESETS["digits"].model


def test_every_epoch_reads_each_image_once_in_a_new_order():
    data = load_split("digits", "validation", DIGITS)
    steps = list(itertools.islice(training_batches(data, 25, seed=0, start=0), 8))
    first, second = (torch.cat([batch.values for batch in part]).flatten(1) for part in (steps[:4], steps[4:]))
    everything = sorted(map(tuple, data.values.flatten(1).tolist()))
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, second.tolist())) == everything
    assert not torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_is_a_function_of_seed_and_step(workers):
    data = load_split("digits", "validation", DIGITS)
    whole = list(itertools.islice(training_batches(data, 30, seed=1, start=0, flip=True), 9))
    resumed = list(itertools.islice(training_batches(data, 30, seed=1, start=5, flip=True, workers=workers), 4))
    for a, b in zip(whole[5:], resumed, strict=True):
        assert a.step == b.step
        assert torch.equal(a.values, b.values)
        assert torch.equal(a.labels, b.labels)
    other = next(training_batches(data, 30, seed=2, start=0, flip=True))
    assert not torch.equal(other.values, whole[0].values)
    plain = next(training_batches(data, 30, seed=1, start=0))
    flipped = (plain.values != whole[0].values).flatten(1).any(1).double().mean()
    assert 0.2 < flipped < 0.8


def test_random_seeds_differ():
    seeds = {random_seed(0, step, k) for step in range(100) for k in range(100)}
    assert len(seeds) == 10_000


def test_noise_and_label_dropout_depend_on_seed_step_and_sample_only():
    values = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    labels = torch.arange(64) % 10
    dequantiser = Dequantiser("gaussian", 17, noise_start=0.1, noise_final=0.005)

    def drawn(batch, progress=0.0):
        return training_images(
            batch, dequantiser, seed=0, progress=progress, label_dropout=0.25, device=torch.device("cpu")
        )

    images, kept = drawn(Batch(7, values, labels))
    again, _ = drawn(Batch(7, values[:32], labels[:32]))
    later, _ = drawn(Batch(8, values, labels))
    end, _ = drawn(Batch(7, values, labels), progress=1.0)
    assert torch.equal(images[:32], again)
    assert not torch.equal(images, later)
    assert torch.allclose((images + 1) / 20, end + 1, atol=1e-6)  # noise of .1 and of .005
    assert images.std() == pytest.approx(0.1, rel=0.05)
    many = Batch(7, torch.zeros(4000, 1, 1, 1, dtype=torch.uint8), torch.zeros(4000, dtype=torch.long))
    assert float((drawn(many)[1] == -1).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(kept[kept >= 0], labels[kept >= 0])
