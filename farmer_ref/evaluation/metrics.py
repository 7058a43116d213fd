"""The measures of a model: bits/dim, the classification accuracy of its samples, and a Fréchet distance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farmer_ref.data.order import random_seed
from farmer_ref.data.sets import ImageData, batches, evenly_spread
from farmer_ref.model.checks import check_grey_levels, checked_labels, evaluating
from farmer_ref.model.farmer import Farmer, LikelihoodTerms
from farmer_ref.model.guidance import Guidance
from farmer_ref.model.student import OneStepStudent
from farmer_ref.model.tokens import nats_to_bits_per_dim
from farmer_ref.support import parallel
from farmer_ref.support.errors import InputError


@torch.no_grad()
def terms_over_draws(
    model: Farmer,
    values: Tensor,
    labels: Tensor | None,
    *,
    draws: int,
    seed: int,
    numbers: Sequence[int] | None = None,
    noise_std: float | None = None,
) -> LikelihoodTerms:
    """Likelihood terms (draws, B) of images (B,C,H,W), bytes, under `draws` dequantisations each.

    The noise of an image is a function of (seed, its number, draw) and of the device, not of its batch: `numbers` are
    the places of these images among all that are scored, by default 0 .. B-1. It is drawn in float32 whatever the
    model's dtype. `noise_std` is the standard deviation of Gaussian noise, by default that at the end of training.
    """
    check_grey_levels("values", values, model.config.levels)
    device = next(model.parameters()).device
    generator = torch.Generator(device)
    if labels is not None and (classes := model.config.num_classes):
        labels = checked_labels(labels, len(values), classes=classes, device=device)
    else:
        labels = None
    numbers = range(len(values)) if numbers is None else numbers
    values, rows = values.to(device), []
    with evaluating(model):
        for draw in range(draws):
            noise = []
            for number in numbers:
                generator.manual_seed(random_seed(seed, "dequantise", number, draw))
                noise.append(model.dequantiser.draw(tuple(values.shape[1:]), generator))
            rows.append(model.likelihood_terms(model.dequantiser(values, torch.stack(noise), noise_std), labels))
    return LikelihoodTerms(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _require_uniform(model: Farmer) -> None:
    if model.config.dequantisation != "uniform":
        raise InputError(
            "dequantisation is 'gaussian', whose density is that of a noised image; "
            "allowed for bits/dim: a model trained with 'uniform'"
        )


def _log_prob_bound(total: Tensor, importance_weighted: bool) -> Tensor:
    """The bound (B,) on log P of an image from log p under each draw (draws, B): mean of logs, or log of means."""
    return torch.logsumexp(total, 0) - math.log(len(total)) if importance_weighted else total.mean(0)


def bits_per_dim(
    model: Farmer,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    draws: int = 8,
    importance_weighted: bool = False,
    seed: int = 0,
) -> Tensor:
    """Discrete bits/dim (B,) of images (B,C,H,W), bytes: an upper bound of -log2 P(image) / d, averaged over `draws`.

    E_u[-log p(x + u)] >= -log P by Jensen's inequality; `importance_weighted` moves the mean over draws inside the
    logarithm, -log (1/S) sum_s p(x + u_s), which is tighter (Burda et al. 2016). Raises `InputError` for a model
    trained with Gaussian noise, which has no discrete bits/dim.

    >>> import torch
    >>> from farmer_ref import Farmer, bits_per_dim
    >>> model = Farmer.from_pretrained("digits")
    >>> three = model.sample(torch.tensor([3]), generator=torch.Generator().manual_seed(0))
    >>> drawn, white = model.dequantiser.quantise(three), torch.full((1, 1, 8, 8), 16, dtype=torch.uint8)
    >>> bits = bits_per_dim(model, torch.cat([drawn, white]), torch.tensor([3, 3]))
    >>> (bits < torch.tensor(17).log2()).tolist()  # better than no model of the 17 grey levels?
    [True, False]
    """
    _require_uniform(model)
    check_grey_levels("images", images, model.config.levels)
    if not len(images):
        return torch.zeros(0, device=images.device)
    if draws < 1:
        raise InputError(f"draws is {draws}; allowed: 1 or more")
    total = terms_over_draws(model, images, labels, draws=draws, seed=seed).total  # (draws, B)
    log_prob = _log_prob_bound(total, importance_weighted)
    return nats_to_bits_per_dim(log_prob, model.config.dimensions, model.config.levels)


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a split, averaged over its images; bits/dim are None without uniform dequantisation."""

    images: int
    draws: int
    nats_per_dim: float
    """-log p of the continuous (dequantised or noised) image, per dimension."""
    informative_nats_per_dim: float
    redundant_nats_per_dim: float
    logdet_nats_per_dim: float
    """The three parts that add up to nats_per_dim, each minus its term of the log-density."""
    bits_per_dim: float | None
    standard_error: float | None
    """The standard error of bits_per_dim over images."""
    importance_weighted_bits_per_dim: float | None


def evaluate_likelihood(
    model: Farmer,
    data: ImageData,
    *,
    draws: int = 8,
    batch_size: int = 100,
    limit: int | None = None,
    seed: int = 0,
    importance_weighted: bool = False,
    noise_std: float | None = None,
) -> Likelihood:
    """The likelihood of a split given its labels; `limit` caps the images and picks evenly spaced ones.

    Under torchrun the processes take the batches in turn, and all get the result. The noise of an image is a function
    of (seed, its place in the split, draw): neither batches nor processes change it. `noise_std` is the standard
    deviation of Gaussian noise, by default that at the end of training.
    """
    config, uniform = model.config, model.config.dequantisation == "uniform"
    if importance_weighted:
        _require_uniform(model)
    turn, turns, mine = parallel.rank(), parallel.world_size(), []
    numbers = evenly_spread(len(data), limit)
    for batch, (values, labels) in enumerate(batches(data, batch_size, limit, turn, turns)):
        first = (turn + batch * turns) * batch_size
        own = numbers[first : first + len(values)]
        terms = terms_over_draws(model, values, labels, draws=draws, seed=seed, numbers=own, noise_std=noise_std)
        parts = torch.stack([term.mean(0) for term in terms]).cpu().double()  # (3, B)
        mine.append((parts, terms.total.cpu().double()))  # and (draws, B)
    part, total = (torch.cat(column, 1) for column in zip(*parallel.gather_interleaved(mine), strict=True))
    informative, redundant, logdet = (-part.mean(1) / config.dimensions).tolist()
    bits, tighter_bits = (
        nats_to_bits_per_dim(_log_prob_bound(total, weighted), config.dimensions, config.levels)
        for weighted in (False, True)
    )
    return Likelihood(
        images=total.shape[1],
        draws=draws,
        nats_per_dim=float(-total.mean() / config.dimensions),
        informative_nats_per_dim=informative,
        redundant_nats_per_dim=redundant,
        logdet_nats_per_dim=logdet,
        bits_per_dim=float(bits.mean()) if uniform else None,
        standard_error=float(bits.std() / math.sqrt(len(bits))) if uniform and len(bits) > 1 else None,
        importance_weighted_bits_per_dim=float(tighter_bits.mean()) if importance_weighted else None,
    )


def sample_batches(
    model: Farmer,
    labels: Tensor,
    *,
    seed: int,
    batch_size: int = 100,
    guidance: Guidance | None = None,
    student: OneStepStudent | None = None,
    redundant_temperature: float = 1.0,
) -> Iterator[Tensor]:
    """One sample per label, as bytes (B,C,H,W) on the CPU, in batches; several processes take them in turn.

    The samples of a batch depend on (seed, its number) alone, as in `farmer_ref.sample`.
    """
    parts = labels.split(batch_size)
    for batch in range(parallel.rank(), len(parts), parallel.world_size()):
        generator = sample_generator(labels.device, seed, batch)
        images = model.sample(
            parts[batch],
            guidance,
            student=student,
            redundant_temperature=redundant_temperature,
            generator=generator,
        )
        yield model.dequantiser.quantise(images).cpu()


def sample_values(model: Farmer, labels: Tensor, **options: Any) -> Tensor:
    """All samples of `sample_batches`, which takes the options, as one tensor (n,C,H,W) on every process."""
    return torch.cat(parallel.gather_interleaved(list(sample_batches(model, labels, **options))))


def sample_generator(device: torch.device, seed: int, batch: int) -> torch.Generator:
    """The generator for the samples of one batch: a function of the seed and the batch's number."""
    return torch.Generator(device).manual_seed(random_seed(seed, "sample", batch))


class PixelClassifier:
    """A support-vector classifier of grey levels, trained on real images, that judges samples.

    It has little in common with the model, so the two are unlikely to share mistakes. Its accuracy on real test images
    is the ceiling for any sampler.
    """

    def __init__(self, train: ImageData, limit: int = 10_000):
        from sklearn.svm import SVC

        values, labels = next(batches(train, limit, limit))
        if labels.unique().numel() < 2:
            raise InputError(f"dataset is {train.name!r}, of one class; allowed: two classes or more, or samples 0")
        self.scale = train.levels - 1
        self._classifier = SVC(C=10.0).fit(self._pixels(values), labels.numpy())

    def _pixels(self, values: Tensor) -> np.ndarray:
        return values.flatten(1).cpu().numpy() / self.scale

    def predict(self, values: Tensor) -> Tensor:
        """The class (B,) of images (B,C,H,W), bytes."""
        return torch.from_numpy(self._classifier.predict(self._pixels(values)))

    def scores(self, values: Tensor) -> Tensor:
        """Class scores of images (B,C,H,W), bytes: the features of our Fréchet distance. One column for two classes."""
        return torch.from_numpy(self._classifier.decision_function(self._pixels(values))).reshape(len(values), -1)

    def class_scores(self, values: Tensor) -> Tensor:
        """The scores by which the class is chosen, the same as `scores`."""
        return self.scores(values)

    def accuracy(self, values: Tensor, labels: Tensor) -> float:
        """The share of images that are classified as their label."""
        return float((self.predict(values) == labels.cpu()).double().mean())


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features (n,F), in float64: all that a Fréchet distance reads, and flat in n.

    Moments of parts add up to those of the whole (Chan, Golub and LeVeque 1979), to rounding.
    """

    count: int
    mean: Tensor
    """(F,)"""
    scatter: Tensor
    """(F,F): the sum of (f - mean) (f - mean)^T over features f."""

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of features (n,F)."""
        features = features.double()
        mean = features.mean(0)
        return cls(len(features), mean, (features - mean).T @ (features - mean))

    def __add__(self, other: Moments) -> Moments:
        count, apart = self.count + other.count, other.mean - self.mean
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """(F,F), unbiased."""
        return self.scatter / (self.count - 1)


def frechet_distance(features: Tensor | Moments, other: Tensor | Moments) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^{1/2}) of two sets of features (n,F), (n',F), in float64 (Heusel et al. 2017).

    Their `Moments` will do. tr (C C')^{1/2} is the sum of the square roots of the eigenvalues of C^{1/2} C' C^{1/2},
    which is symmetric.
    """
    a, b = (given if isinstance(given, Moments) else Moments.of(given) for given in (features, other))
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    mean = (a.mean - b.mean).square().sum()
    return float(mean + a.covariance.trace() + b.covariance.trace() - 2 * cross)
