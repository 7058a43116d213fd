"""Anomaly scores: how unusual an image is under a model.

Legend: B images, C colour channels, H = W image size, v integer grey levels; log-densities are per-image sums in nats.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor
from tqdm import tqdm

from farmer_ref.evaluation.metrics import terms_over_draws
from farmer_ref.model.config import NULL_LABEL
from farmer_ref.model.farmer import Farmer
from farmer_ref.support.errors import require_finite


def compressed_length(values: Tensor) -> Tensor:
    """The length (B,) in nats of each image's grey levels (B,C,H,W) under zlib: a crude measure of complexity."""
    sizes = [len(zlib.compress(image.numpy().tobytes(), 9)) for image in values.to(torch.uint8).cpu()]
    return torch.tensor(sizes, dtype=torch.float64) * 8 * math.log(2)  # of 8 bits each


class AnomalyScorer:
    """Anomaly scores under a model, relative to its own training images; larger is more anomalous.

    log p(x) is that of the likeliest training class, max_c log p(x | c), which lies within log C of the mixture of C
    classes; a model without labels has only one p(x).

    likelihood: -log p(x), the obvious score. It fails on images *simpler* than those of training: a density can be high
    where no image ever was, and is highest on flat images (Nalisnick et al. 2019a).

    typicality: |-log p(x) - H|, H the mean over training images (Nalisnick et al. 2019b, for a single image).

    complexity: -log p(x) - L(v), L the compressed length (Serrà et al. 2020): a simple image gets no credit for it.

    terms: the Mahalanobis distance of (log p(Z_I), log p(Z_R | Z_I), log|det|) from those of training images. The three
    can be unusual while their sum is not.

    terms and complexity: the same with L(v) as a fourth.
    """

    SCORES = ("likelihood", "typicality", "complexity", "terms", "terms and complexity")

    def __init__(
        self,
        model: Farmer,
        train: Tensor,
        labels: Tensor,
        *,
        draws: int = 4,
        seed: int = 0,
        progress: bool = False,
    ):
        """`train` (n,C,H,W) and `labels` (n,): grey levels of normal images, and their classes."""
        self.model, self.draws, self.seed, self.progress = model, draws, seed, progress
        self.classes = labels.unique().tolist() if model.config.num_classes else [NULL_LABEL]
        features = self.features(train)
        self.mean = features.mean(0)  # (4,)
        self.covariance = torch.cov(features.T)  # (4,4)

    def features(self, values: Tensor, *, batch_size: int = 100) -> Tensor:
        """The three terms of log p(x), averaged over draws, and the compressed length: (B,4), nats."""
        rows = []
        starts = range(0, len(values), batch_size)
        for start in tqdm(starts, desc="terms", unit="batch", disable=not self.progress, leave=False):
            part, per_class = values[start : start + batch_size], []
            for c in self.classes:
                terms = terms_over_draws(
                    self.model,
                    part,
                    torch.full((len(part),), c),
                    draws=self.draws,
                    seed=self.seed,
                    numbers=range(start, start + len(part)),
                )
                per_class.append(torch.stack([term.mean(0).cpu().double() for term in terms], -1))
            each = torch.stack(per_class, 1)  # (b,classes,3)
            likeliest = each[torch.arange(len(part)), each.sum(-1).argmax(1)]
            require_finite("log p", likeliest, "a model that scores these images")
            rows.append(torch.cat([likeliest, compressed_length(part)[:, None]], -1))
        return torch.cat(rows)

    def scores(self, values: Tensor) -> dict[str, Tensor]:
        """Every score (B,) of grey levels (B,C,H,W), by name."""
        features = self.features(values)
        nats, expected = -features[:, :3].sum(1), -self.mean[:3].sum()
        columns = (
            nats,
            (nats - expected).abs(),
            nats - features[:, 3],
            self._distance(features, 3),
            self._distance(features, 4),
        )
        return dict(zip(self.SCORES, columns, strict=True))

    def _distance(self, features: Tensor, count: int) -> Tensor:
        """The Mahalanobis distance (B,) of the first `count` features from those of training images."""
        centred = (features - self.mean)[:, :count]
        inverse = torch.linalg.pinv(self.covariance[:count, :count], hermitian=True)  # without a split one term is 0
        return (centred @ inverse * centred).sum(1).clamp(min=0).sqrt()
