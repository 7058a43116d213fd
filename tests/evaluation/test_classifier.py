"""The judges of samples."""

import torch

from farmer_ref import PRESETS
from farmer_ref.data.sets import load_split
from farmer_ref.evaluation.classifier import ConvClassifier, classifier_for
from farmer_ref.evaluation.metrics import PixelClassifier, frechet_distance


def test_the_shipped_convnet_reads_digits_it_was_not_trained_on():
    test, train = (load_split("mnist-small", split, PRESETS["mnist"].model) for split in ("test", "train"))
    judge = classifier_for(train)
    assert isinstance(judge, ConvClassifier) and not judge.training
    assert judge.accuracy(test.values, test.labels) > 0.98
    assert judge.accuracy(test.values.flip(2), test.labels) < 0.7  # upside down
    assert judge.class_scores(test.values).shape == (300, 10) and judge.scores(test.values).shape == (300, 64)
    here, there = (
        frechet_distance(judge.scores(test.values[:150]), judge.scores(values))
        for values in (test.values[150:], test.values[150:].roll(4, 3))
    )
    assert here < there


def test_other_data_has_a_classifier_of_its_pixels():
    judge = classifier_for(load_split("digits", "train", PRESETS["digits"].model))
    assert isinstance(judge, PixelClassifier)
    values = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert torch.equal(judge.class_scores(values), judge.scores(values))
