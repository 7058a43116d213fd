"""Classifiers that judge samples: of pixels, by a support vector machine, or of 28x28 digits, by a small ConvNet.

Neither has anything in common with the model, so they are unlikely to share its mistakes. The ConvNet ships with the
package, trained by `python -m benchmarks.mnist --stage classifier`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farmer_ref.data.sets import ImageData
from farmer_ref.evaluation.metrics import Moments, PixelClassifier, sample_batches
from farmer_ref.model.farmer import Farmer
from farmer_ref.support import parallel
from farmer_ref.support.files import PRETRAINED, load_weights

WEIGHTS = PRETRAINED / "mnist" / "classifier.safetensors"
CONVOLUTIONAL = ("mnist", "mnist-small")  # data sets that the shipped ConvNet reads


class ConvClassifier(nn.Module):
    """Three convolutions and two linear layers over 28x28 grey levels: the class of a digit, and its features.

    `scores` are the 64 features before the last layer: those of our Fréchet distance on MNIST.
    """

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, num_classes)

    def features(self, values: Tensor) -> Tensor:
        """Grey levels (B,1,28,28), bytes, to features (B,64)."""
        return self.body(values.to(self.head.weight) / 255)

    def forward(self, values: Tensor) -> Tensor:
        """Grey levels (B,1,28,28), bytes, to logits (B,classes)."""
        return self.head(F.dropout(self.features(values), 0.3, self.training))

    @torch.no_grad()
    def predict(self, values: Tensor) -> Tensor:
        """The class (B,) of images (B,1,28,28), bytes."""
        return self.class_scores(values).argmax(1)

    @torch.no_grad()
    def scores(self, values: Tensor) -> Tensor:
        """The features (B,64) of images (B,1,28,28), bytes."""
        return torch.cat([self.features(part) for part in values.cpu().split(500)])

    @torch.no_grad()
    def class_scores(self, values: Tensor) -> Tensor:
        """The logits (B,classes) of images (B,1,28,28), bytes."""
        return torch.cat([self(part) for part in values.cpu().split(500)])

    def accuracy(self, values: Tensor, labels: Tensor) -> float:
        """The share of images that are classified as their label."""
        return float((self.predict(values) == labels.cpu()).double().mean())


def shipped_classifier() -> ConvClassifier:
    """The ConvNet that ships with the package, in evaluation mode."""
    classifier = ConvClassifier()
    load_weights(classifier, WEIGHTS)
    return classifier.eval()


def classifier_for(train: ImageData) -> ConvClassifier | PixelClassifier:
    """The judge of samples of a data set: the shipped ConvNet for MNIST, else an SVM trained on these images."""
    return shipped_classifier() if train.name in CONVOLUTIONAL else PixelClassifier(train)


def sample_scores(
    classifier: ConvClassifier | PixelClassifier, model: Farmer, labels: Tensor, **options: Any
) -> tuple[float, Moments]:
    """The accuracy of the samples of `sample_batches`, which takes the options, and the moments of their `scores`.

    Neither images nor scores are kept: memory grows neither with their size nor with their number.
    """
    batch_size = options.get("batch_size", 100)
    parts, mine = labels.split(batch_size)[parallel.rank() :: parallel.world_size()], Judged(0, None)
    for part, values in zip(parts, sample_batches(model, labels, **options), strict=True):
        right = int((classifier.predict(values) == part.cpu()).sum())
        mine += Judged(right, Moments.of(classifier.scores(values)))
    judged = functools.reduce(Judged.__add__, parallel.gather(mine))
    return judged.right / len(labels), judged.moments


@dataclass(frozen=True)
class Judged:
    """How many samples a classifier assigns to their label, and the moments of their scores (None without samples)."""

    right: int
    moments: Moments | None

    def __add__(self, other: Judged) -> Judged:
        known = [part.moments for part in (self, other) if part.moments is not None]
        return Judged(self.right + other.right, functools.reduce(Moments.__add__, known) if known else None)
