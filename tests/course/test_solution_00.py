"""The solutions of notebook 00."""

import math

import solution_00
import torch
from helpers import solution_passes_starter
from solution_00 import bits_of_the_label

from farmer_ref import PRESETS, Farmer
from farmer_ref.data.sets import batches, load_split


def test_the_label_saves_what_a_label_holds_and_no_more():
    model = Farmer.from_pretrained("digits")
    values, labels = next(batches(load_split("digits", "test", model.config), 300))
    noise = model.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
    images = model.dequantiser(values, noise)
    null, average = bits_of_the_label(model, images, labels)
    assert null > math.log2(10) > average > 3
    given = {"small": model, "images": images, "labels": labels}
    solution_passes_starter(solution_00, "00_tour", "bits_of_the_label", **given)


def test_the_figures_that_the_notebook_quotes():
    zeros = -64 * math.log10(2 / 17)
    assert math.floor(zeros) == 59  # behind the point, before the first other digit
    assert len(load_split("digits", "train", PRESETS["digits"].model)) == 1397
    assert PRESETS["digits"].label_dropout == 0.1  # what the null class saw


def test_a_few_seconds_of_training_beat_knowing_nothing():
    solution_passes_starter(solution_00, "00_tour", "bits_after", nothing=math.log2(17))
