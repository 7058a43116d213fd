"""Gaussian mixtures with diagonal covariance, the heads of the prior (Eqs. 7 and 11).

Legend: K components, D channels of a vector (here I or R of a token's).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from farmer_ref.model.checks import draw_places
from farmer_ref.model.precision import float32_at_least

DIRECTLY = 2**15  # elements T K D of a shared mixture at T vectors, up to which each is computed by itself
LOG_SCALE_FLOOR = -7.0  # a component is never narrower than e^-7 = .0009: well below the paper's final noise of .005


@dataclass(frozen=True)
class GaussianMixture:
    """p(z) = sum_k pi_k N(z; mu_k, diag sigma_k^2)   (Eq. 11)

    logits (...,K) (any shift: normalised where used), mean and log_scale (...,K,D). `...` is any batch of mixtures.

    >>> import torch
    >>> from farmer_ref import GaussianMixture
    >>> mixture = GaussianMixture(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1))  # K = 2, D = 1
    >>> round(mixture.log_prob(torch.zeros(1)).item(), 3)  # log N(0; 1, 1), by symmetry
    -1.419
    >>> mixture.sample().shape
    torch.Size([1])
    """

    logits: Tensor
    mean: Tensor
    log_scale: Tensor

    @classmethod
    def from_raw(cls, raw: Tensor, components: int) -> GaussianMixture:
        """The mixture that a network's output (..., K (1 + 2 D)) describes: K logits, K D means, K D log-scales.

        log sigma has a smooth floor (ours: the paper does not give the form of sigma_k). A network in half precision
        gives a mixture in float32.
        """
        raw = raw.to(float32_at_least(raw.dtype))
        channels = (raw.shape[-1] // components - 1) // 2
        logits, mean, log_scale = raw.split([components, components * channels, components * channels], -1)
        log_scale = LOG_SCALE_FLOOR + F.softplus(log_scale - LOG_SCALE_FLOOR)
        shape = (*raw.shape[:-1], components, channels)
        return cls(logits, mean.reshape(shape), log_scale.reshape(shape))

    def __getitem__(self, rows: slice) -> GaussianMixture:
        """Some of the mixtures along the first batch dimension."""
        return GaussianMixture(self.logits[rows], self.mean[rows], self.log_scale[rows])

    def unsqueeze(self) -> GaussianMixture:
        """The same mixtures with a batch dimension of 1 added last: one mixture for many tokens."""
        return GaussianMixture(self.logits.unsqueeze(-2), self.mean.unsqueeze(-3), self.log_scale.unsqueeze(-3))

    def expand(self, copies: int) -> GaussianMixture:
        """The same mixtures with the last batch dimension, of size 1, repeated `copies` times."""
        return GaussianMixture(
            self.logits.expand(*self.logits.shape[:-2], copies, -1),
            self.mean.expand(*self.mean.shape[:-3], copies, -1, -1),
            self.log_scale.expand(*self.log_scale.shape[:-3], copies, -1, -1),
        )

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) = logsumexp_k [log pi_k + log N(z; mu_k, diag sigma_k^2)]   (Eq. 7)

        z (...,D), broadcast against the batch of mixtures; returns (...), nats summed over D.
        """
        standardised = (z.unsqueeze(-2) - self.mean) * torch.exp(-self.log_scale)  # (...,K,D)
        log_normal = -0.5 * (standardised.square() + math.log(2 * math.pi)) - self.log_scale
        return torch.logsumexp(torch.log_softmax(self.logits, -1) + log_normal.sum(-1), -1)

    def log_prob_shared(self, z: Tensor) -> Tensor:
        """log p(z) (B,T) of T redundant vectors z (B,T,D) under each of B shared mixtures   (Eq. 14)

        As `log_prob`, without its T K D numbers. At patch 16 these would be 33 million an image. So the square is
        multiplied out, which leaves two matrix products; in float64, as terms of up to (z / sigma_k)^2 cancel there.
        They are computed again to go backward.
        """
        if z.shape[1] * self.mean.shape[1:].numel() <= DIRECTLY:
            return self.unsqueeze().log_prob(z)
        again = torch.is_grad_enabled()
        return checkpoint(self._multiplied_out, z, use_reentrant=False) if again else self._multiplied_out(z)

    def _multiplied_out(self, z: Tensor) -> Tensor:
        exact, mean, log_scale = z.double(), self.mean.double(), self.log_scale.double()
        precision = torch.exp(-2 * log_scale)  # (B,K,D)
        square = exact.square() @ precision.mT - 2 * exact @ (precision * mean).mT  # (B,T,K)
        rest = precision * mean.square() + 2 * log_scale + math.log(2 * math.pi)  # (B,K,D)
        log_weighted = torch.log_softmax(self.logits.double(), -1) - 0.5 * rest.sum(-1)
        return torch.logsumexp(log_weighted[:, None] - 0.5 * square, -1).to(z.dtype)

    def draw_component(self, generator: torch.Generator | None = None) -> Tensor:
        """The number k (...) of a component of each mixture, drawn by weight."""
        weights = torch.softmax(self.logits, -1).reshape(-1, self.logits.shape[-1])
        return draw_places(weights, 1, generator).view(self.logits.shape[:-1])

    def component(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale, each (...,D), of the components k (...)."""
        k = k[..., None, None].expand(*k.shape, 1, self.mean.shape[-1])
        return self.mean.gather(-2, k).squeeze(-2), self.log_scale.gather(-2, k).squeeze(-2)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw from each mixture, (...,D)."""
        mean, log_scale = self.component(self.draw_component(generator))
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + log_scale.exp() * noise

    def tempered(self, weight_temperature: float = 1.0, scale_temperature: float = 1.0) -> GaussianMixture:
        """The mixture at T_pi and T_sigma (A.2, for guidance): logits times T_pi, so larger is *sharper*; sigma_k
        times T_sigma.

        T_sigma = 0 leaves the means alone (Fig. 7): such a mixture can be sampled, and has no density.
        """
        log_factor = math.log(scale_temperature) if scale_temperature > 0 else -math.inf
        return GaussianMixture(self.logits * weight_temperature, self.mean, self.log_scale + log_factor)
