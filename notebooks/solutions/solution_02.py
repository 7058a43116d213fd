"""Solutions of notebook 02: the exact probability of a grey level, and a GRU as the prior."""

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
    nats_to_bits_per_dim,
)
from farmer_ref.data.sets import batches, load_split
from farmer_ref.model.prior import PriorLogProb


def exact_bits(pixel: GaussianMixture, share: Tensor) -> float:
    """Mean -log2 P(v) over grey levels v with these shares (L,): P(v) is the mass in the cell of v."""
    edges = torch.linspace(-1, 1, len(share) + 1, dtype=torch.float64)[:, None]  # (L+1,1)
    below = torch.special.ndtr((edges - pixel.mean[:, 0]) / pixel.log_scale[:, 0].exp())  # (L+1,K)
    mass = (below @ pixel.logits.double().softmax(0)).diff()  # (L,)
    return -(share * mass.log2()).sum().item()


def pixel_bits(width: float, draws: int = 4000) -> tuple[float, float]:
    """Exact bits and dequantised bound of the notebook's mixture at one width, on the test pixels."""
    model = Farmer.from_pretrained("digits")
    values, _ = next(batches(load_split("digits", "test", model.config), 300))
    share = values.flatten().long().bincount(minlength=17).double() / values.numel()
    centre = 2 * (torch.arange(17, dtype=torch.float64) + 0.5) / 17 - 1
    log_scale = torch.full((17, 1), math.log(width), dtype=torch.float64)
    pixel = GaussianMixture(share.log(), centre[:, None], log_scale)
    noise = (torch.rand(draws, 17, generator=torch.Generator().manual_seed(0)) - 0.5).double()
    log_p = pixel.log_prob((centre + 2 / 17 * noise)[..., None]).mean(0) @ share
    return exact_bits(pixel, share), nats_to_bits_per_dim(log_p, 1, 17).item()


class RecurrentPrior(nn.Module):
    """p(Z | c) = prod_i p(z_i | z_<i, c), with a GRU in the place of the transformer; no split."""

    def __init__(
        self, tokens: int, channels: int, layers: int, width: int, classes: int, components: int
    ):
        super().__init__()
        self.components = components
        self.class_embedding = nn.Embedding(classes, width)  # read before token 1
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


def both_priors() -> dict[str, nn.Module]:
    """A transformer and a GRU of about as many parameters, untrained."""
    transformer = AutoregressivePrior(
        16, 4, layers=2, width=64, head_dim=32, num_classes=10, components=16
    )
    return {"transformer": transformer, "GRU": RecurrentPrior(16, 4, 1, 120, 10, 16)}


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
    for width in (0.03, 0.04, 0.05, 0.1):
        exact, bound = pixel_bits(width)
        print(f"width {width}: exact {exact:.3f}, dequantised {bound:.3f} bits/dim")
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
