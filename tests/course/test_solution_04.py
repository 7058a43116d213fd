"""The solutions of notebook 04."""

from unittest import mock

import pytest
import solution_04
import torch
from helpers import solution_passes_starter
from solution_04 import (
    accuracy_and_diversity,
    distance_with_candidates,
    share_beyond_honesty,
    share_improper,
)

from book.pages import load
from farmer_ref import Farmer, Guidance
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import PixelClassifier


@pytest.fixture(scope="module")
def model():
    return Farmer.from_pretrained("digits")


@pytest.fixture(scope="module")
def classifier(model):
    return PixelClassifier(load_split("digits", "train", model.config))


def test_the_null_class_is_not_the_average_of_the_classes(model):
    labels = torch.arange(10).repeat(20)
    z = model.prior.sample(labels, generator=torch.Generator().manual_seed(0))
    assert share_beyond_honesty(model, z, labels) > 0.8


def test_improper_targets_are_rare_at_a_small_scale_and_common_at_a_large_one(model):
    labels = torch.arange(10).repeat(20)
    z = model.prior.sample(labels, generator=torch.Generator().manual_seed(0))
    shares = [share_improper(model, z, labels, w) for w in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert shares == sorted(shares) and shares[0] == 0
    assert shares[1] < 0.01 and 0.2 < shares[-1] < 0.3


def test_more_candidates_take_the_images_away_from_the_data(model, classifier):
    real = next(batches(load_split("digits", "validation", model.config), 100))[0]
    distances = [distance_with_candidates(model, n, classifier, real) for n in (2, 5, 20)]
    assert distances == sorted(distances) and distances[-1] > 1.5 * distances[0]


@pytest.mark.parametrize(
    ("w", "temperature"),
    [(0.25, {"scale_temperature": 0.8}), (1.0, {"weight_temperature": 3.0})],
)
def test_guidance_keeps_more_diversity_than_a_temperature_at_the_same_accuracy(model, classifier, w, temperature):
    guided, sharper = (
        accuracy_and_diversity(model, guidance, classifier=classifier, seed=0, count=1000)
        for guidance in (Guidance(scale=w), Guidance(**temperature))
    )
    assert abs(guided[0] - sharper[0]) < 0.02
    assert guided[1] > sharper[1] + 0.4


def test_what_the_prose_says_of_guidance_after_few_steps():
    """By the distance, the naive rule is better than no guidance, and resampling better than the naive rule."""
    rows = load("table3_mnist-quick_histogram")["rows"][4:7]
    assert [row["sampling"] for row in rows] == [
        [],
        ["--guidance", "1", "--guidance.rule", "naive"],
        ["--guidance", "1"],
    ]
    for none, naive, resampling in zip(*(row["frechet_distance"]["seeds"] for row in rows), strict=True):
        assert none > naive > resampling


def test_what_the_prose_says_of_the_two_rules():
    """At every scale resampling has more accuracy and less variety than the naive rule, and than no guidance; the naive
    rule has more accuracy than none."""
    sweep = {(row["rule"], row["scale"]): row for row in load("guidance")["sweep"]}
    for scale in load("guidance")["scales"][1:]:
        none, naive, resampling = (sweep["naive", 0.0], sweep["naive", scale], sweep["resampling", scale])
        least, middle, most = (row["sample_accuracy"]["mean"] for row in (none, naive, resampling))
        assert least < middle < most, scale
        assert resampling["diversity"]["mean"] < min(none["diversity"]["mean"], naive["diversity"]["mean"]), scale


@pytest.mark.parametrize("function", ["share_beyond_honesty", "share_improper", "accuracy_and_diversity"])
def test_the_solution_passes_the_starter(function):
    solution_passes_starter(solution_04, "04_guided_resampling", function, mock=mock)
