"""Anomaly scores: how strange an image is to a model.

Legend: B images, C colour channels, H = W image size, v whole grey levels; log-densities are per-image sums in nats.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor
from tqdm import tqdm

from farmer_ref.evaluation.metrics import terms_over_draws
from farmer_ref.model.farmer import Farmer
from farmer_ref.model.prior import NULL_LABEL


def compressed_length(values: Tensor) -> Tensor:
    """The length (B,) of grey levels (B,C,H,W), each compressed by zlib, in nats: a crude measure of complexity."""
    sizes = [len(zlib.compress(image.numpy().tobytes(), 9)) for image in values.cpu()]  # bytes of 8 bits
    return torch.tensor(sizes, dtype=torch.float64) * 8 * math.log(2)


class AnomalyScorer:
    """Scores of how strange an image is to a model, from what its training images look like to it; larger is stranger.

    log p(x) is that of the likeliest class of training, max_c log p(x | c), which lies within log C of the mixture of C
    classes; in a model without labels there is only one p(x).

    likelihood: -log p(x), the obvious one. It fails where images are *simpler* than those of training: a density can be
    high where no image ever was, and is highest on flat ones (Nalisnick et al. 2019a).
    typicality: |-log p(x) - H|, H the mean over training images (Nalisnick et al. 2019b, for a single image).
    complexity: -log p(x) - L(v), L the compressed length (Serrà et al. 2020): what is simple has no credit for it.
    terms: the Mahalanobis distance of (log p(Z_I), log p(Z_R | Z_I), log|det|) from those of training images. The three
    can be strange while their sum is not.
    terms and complexity: the same with L(v) as a fourth.
    """

    SCORES = ("likelihood", "typicality", "complexity", "terms", "terms and complexity")

    def __init__(
        self, model: Farmer, train: Tensor, labels: Tensor, draws: int = 4, seed: int = 0, progress: bool = False
    ):
        """`train` (n,C,H,W) and `labels` (n,): grey levels of normal images, and their classes."""
        self.model, self.draws, self.seed, self.progress = model, draws, seed, progress
        self.classes = labels.unique().tolist() if model.config.num_classes else [NULL_LABEL]
        features = self.features(train)
        self.mean = features.mean(0)  # (4,)
        self.covariance = torch.cov(features.T)  # (4,4)

    def features(self, values: Tensor, batch_size: int = 100) -> Tensor:
        """The three terms of log p(x), nats, means over draws, and the compressed length: (B,4), nats."""
        rows = []
        starts = range(0, len(values), batch_size)
        for start in tqdm(starts, desc="terms", unit="batch", disable=not self.progress, leave=False):
            part, of_classes = values[start : start + batch_size], []
            for c in self.classes:
                terms = terms_over_draws(
                    self.model,
                    part,
                    torch.full((len(part),), c),
                    draws=self.draws,
                    seed=self.seed,
                    numbers=range(start, start + len(part)),
                )
                of_classes.append(torch.stack([term.mean(0).cpu().double() for term in terms], -1))
            each = torch.stack(of_classes, 1)  # (b,classes,3)
            likeliest = each[torch.arange(len(part)), each.sum(-1).argmax(1)]
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

    def _distance(self, features: Tensor, first: int) -> Tensor:
        """The Mahalanobis distance (B,) of the `first` features from those of training."""
        centred = (features - self.mean)[:, :first]
        inverse = torch.linalg.pinv(self.covariance[:first, :first], hermitian=True)  # without a split one term is 0
        return (centred @ inverse * centred).sum(1).clamp(min=0).sqrt()
