"""Solutions of notebook 02a: a prior with K = 1 as a block of a flow, and a GRU as the prior."""

from __future__ import annotations

import copy
import math
import time

import torch
from torch import Tensor, nn

from farmer_ref import (
    AutoregressivePrior,
    Farmer,
    GaussianMixture,
    bits_per_dim,
)
from farmer_ref.data.sets import batches, load_split
from farmer_ref.model.prior import PriorLogProb


def as_block(prior: AutoregressivePrior, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """z' (B,N,D) and log|det dz'/dz| (B,): a prior with K = 1 and no split, as a block of a flow."""
    mixture, _ = prior.mixtures(z, labels)
    mean, log_scale = mixture.mean[:, :, 0], mixture.log_scale[:, :, 0]  # of the only component
    return (z - mean) * torch.exp(-log_scale), -log_scale.sum((1, 2))


class RecurrentPrior(nn.Module):
    """p(Z | c) = prod_i p(z_i | z_<i, c), with a GRU in the place of the transformer; no split."""

    def __init__(
        self, tokens: int, channels: int, layers: int, width: int, classes: int, components: int
    ):
        super().__init__()
        self.components = components
        self.class_embedding = nn.Embedding(classes, width)  # read before the first token
        self.project_in = nn.Linear(channels, width)
        self.positions = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.gru = nn.GRU(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, components * (1 + 2 * channels))
        nn.init.zeros_(self.head.weight)  # near the standard normal, as in the package
        nn.init.normal_(self.head.bias, std=0.1)

    def mixtures(self, z: Tensor, labels: Tensor) -> GaussianMixture:
        """The mixtures (B,N) of latents z (B,N,D), each of which has read the class and the tokens before."""
        before = torch.cat([self.class_embedding(labels)[:, None], self.project_in(z[:, :-1])], 1)
        hidden, _ = self.gru(before + self.positions)
        return GaussianMixture.from_raw(self.head(hidden), self.components)

    def log_prob_parts(self, z: Tensor, labels: Tensor, training: None = None) -> PriorLogProb:
        """log p(Z | c) (B,), in the form that `Farmer` asks for: there is no redundant part."""
        log_p = self.mixtures(z, labels).log_prob(z).sum(1)
        return PriorLogProb(log_p, torch.zeros_like(log_p))


def recurrent_prior(width: int) -> nn.Module:
    """A prior of the digits' latents with a GRU: 16 tokens, 4 channels, 10 classes, K = 16, no split."""
    return RecurrentPrior(16, 4, 1, width, 10, 16)


def both_priors() -> dict[str, nn.Module]:
    """A transformer and a GRU of about as many parameters, untrained."""
    transformer = AutoregressivePrior(
        16, 4, layers=2, width=64, head_dim=32, num_classes=10, components=16
    )
    return {"transformer": transformer, "GRU": recurrent_prior(120)}


@torch.no_grad()
def training_latents(model: Farmer, draws: int) -> tuple[Tensor, Tensor]:
    """Latents (draws,B,N,D) of the training images, each with several draws of noise, and labels."""
    values, labels = next(batches(load_split("digits", "train", model.config), 2000))
    generator = torch.Generator().manual_seed(0)
    noise = (model.dequantiser.draw(tuple(values.shape), generator) for _ in range(draws))
    return torch.stack([model.encode(model.dequantiser(values, u))[0] for u in noise]), labels


def train_prior(
    prior: nn.Module, latents: Tensor, labels: Tensor, seconds: float, rate: float
) -> None:
    """Climb the log-likelihood for some seconds of processor time, the rate falling on a cosine."""
    optimiser, began = (
        torch.optim.AdamW(prior.parameters(), rate, weight_decay=0.05),
        time.process_time(),
    )
    while (done := (time.process_time() - began) / seconds) < 1:
        optimiser.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * done)) / 2
        draw, row = torch.randint(len(latents), (64,)), torch.randint(len(labels), (64,))
        loss = -prior.log_prob_parts(latents[draw, row], labels[row]).informative.mean()
        optimiser.zero_grad()
        (loss / latents[0, 0].numel()).backward()
        nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimiser.step()


def bits_with(model: Farmer, prior: nn.Module, split: str) -> float:
    """Bits/dim of 100 images of a split by the flow of `model` and this prior."""
    model = copy.deepcopy(model)
    model.prior = prior
    values, labels = next(batches(load_split("digits", split, model.config), 100, limit=100))
    return bits_per_dim(model, values, labels).mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    shipped = Farmer.from_pretrained("digits")
    latents, labels = training_latents(shipped, 16)
    print(f"the shipped prior: {bits_with(shipped, shipped.prior, 'validation'):.3f} bits/dim")
    for seconds in (8, 20):
        for seed in range(2):
            torch.manual_seed(seed)
            for name, prior in both_priors().items():
                train_prior(prior, latents, labels, seconds, 6e-3)
                bits = (bits_with(shipped, prior, split) for split in ("train", "validation"))
                report = "training images {:.3f}, validation {:.3f} bits/dim".format(*bits)
                print(f"{name:11} {seconds:2} s, seed {seed}: {report}", flush=True)
