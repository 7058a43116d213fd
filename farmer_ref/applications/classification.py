"""Classification by Bayes' rule from log p(x | c), and its calibration.

Legend: B images, C colour channels, H = W image size, v integer grey levels, c the class label.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from farmer_ref.evaluation.metrics import terms_over_draws
from farmer_ref.model.farmer import Farmer
from farmer_ref.support.errors import require, require_finite


def class_log_probs(
    model: Farmer, values: Tensor, *, draws: int = 16, seed: int = 0, batch_size: int = 100, progress: bool = False
) -> Tensor:
    """log p(v | c) of grey levels v (B,C,H,W) for every class c, up to a constant: (B,classes), nats, on the CPU.

    This is the log of the mean density over dequantisations, log (1/S) sum_s p(x_s | c), with the same draws x_s for
    all classes, whatever the batch size. With uniform dequantisation it is the importance-weighted estimate of
    log p(v | c) (Burda et al. 2016) without d log(2 / L), the log-volume of a cell among L grey levels, which is the
    same for all classes and cancels in Bayes' rule. With Gaussian noise it does not estimate log p(v | c): the
    densities are those of noised images.
    """
    classes = range(model.config.num_classes)
    require(len(classes) > 1, "number of classes", len(classes), "2 or more: a model trained with their labels")
    rows = []
    for start in tqdm(range(0, len(values), batch_size), desc="log p(x | c)", unit="batch", disable=not progress):
        part = values[start : start + batch_size]
        numbers = range(start, start + len(part))
        columns = [
            terms_over_draws(model, part, torch.full((len(part),), c), draws=draws, seed=seed, numbers=numbers).total
            for c in classes
        ]
        rows.append((torch.logsumexp(torch.stack(columns, -1), 0) - math.log(draws)).cpu())  # (draws,B,classes) before
        require_finite("log p", rows[-1], "a model that scores these images")
    return torch.cat(rows)


def class_probabilities(log_probs: Tensor, temperature: float = 1.0) -> Tensor:
    """Bayes' rule with equal priors, p(c | v) = p(v | c) / sum_c' p(v | c'), from log p(v | c) (B,classes).

    Log-likelihoods are divided by the temperature: densities of many pixels are overconfident.
    """
    return torch.softmax(log_probs.double() / temperature, -1)


class ReliabilityBin(NamedTuple):
    """The images whose most probable class has a probability in one interval."""

    images: int
    confidence: float
    accuracy: float


def reliability(probabilities: Tensor, labels: Tensor, *, bins: int = 10) -> list[ReliabilityBin]:
    """Mean confidence and accuracy in equal intervals of confidence, empty ones left out (Guo et al. 2017)."""
    confidence, predicted = probabilities.max(-1)
    interval = (confidence * bins).long().clamp(max=bins - 1)
    correct, found = (predicted == labels).double(), []
    for number in interval.unique():
        inside = interval == number
        found.append(ReliabilityBin(int(inside.sum()), float(confidence[inside].mean()), float(correct[inside].mean())))
    return found


def expected_calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 10) -> float:
    """ECE: the mean of |accuracy - confidence| over intervals, weighted by their images (Guo et al. 2017)."""
    table = reliability(probabilities, labels, bins=bins)
    return sum(row.images * abs(row.accuracy - row.confidence) for row in table) / len(labels)
