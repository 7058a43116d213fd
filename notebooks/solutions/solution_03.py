"""Solutions of notebook 03: how many channels decide the class, and whether clustering chooses better channels."""

from __future__ import annotations

import dataclasses

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from farmer_ref import PRESETS, Farmer, bits_per_dim
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.classifier import shipped_classifier
from farmer_ref.model.tokens import Patchify

CONFIG = PRESETS["photographs"].model


def exchange(model: Farmer, z: Tensor, donor: Tensor, channels: Tensor) -> Tensor:
    """Images (B,C,H,W) decoded from latents z (B,N,D), with some channels from the images numbered donor (B,)."""
    mixed = z.clone()
    mixed[..., channels] = z[donor][..., channels]
    return model.decode(mixed)


@torch.no_grad()
def shares(model: Farmer, counts: list[int], images: int = 100) -> list[tuple[float, float]]:
    """Shares of test images classified as their own class and as the donor's, the first `counts` channels exchanged."""
    classifier = shipped_classifier()
    values, labels = next(batches(load_split("mnist-small", "test", model.config), images))
    noise = model.dequantiser.draw(tuple(values.shape), torch.Generator().manual_seed(0))
    z, _ = model.encode(model.dequantiser(values, noise))
    different = (labels[:, None] != labels).float()
    donor = different.multinomial(1, generator=torch.Generator().manual_seed(0))[:, 0]
    found = []
    for count in counts:
        drawn = model.dequantiser.quantise(exchange(model, z, donor, torch.arange(count)))
        found.append(
            (classifier.accuracy(drawn, labels), classifier.accuracy(drawn, labels[donor]))
        )
    return found


def patches(split: str) -> Tensor:
    """Patches (n,D) of 4,000 crops of photographs, or fewer, in raw pixels from -1 to 1, float64."""
    values = next(batches(load_split("photographs", split, CONFIG), 4000, 4000))[0]
    patchify = Patchify(CONFIG.image_size, CONFIG.channels, patch_size=CONFIG.patch_size)
    return patchify(values.double() / 127.5 - 1).flatten(0, 1)


def unexplained(chosen: list[int], train: Tensor, unseen: Tensor) -> float:
    """The share of the variance of unseen patches (n,D) that a linear guess from some channels misses."""
    rest = [channel for channel in range(train.shape[1]) if channel not in chosen]
    mean, cov = train.mean(0), train.T.cov()
    linear = torch.linalg.solve(cov[chosen][:, chosen], cov[chosen][:, rest])
    guess = (unseen[:, chosen] - mean[chosen]) @ linear + mean[rest]
    return float((guess - unseen[:, rest]).square().sum() / (unseen - mean).square().sum())


def clusters(correlation: Tensor, count: int, method: str) -> list[Tensor]:
    """Agglomerative clusters by the distance 1 - |correlation|: the channels of each."""
    distance = (1 - correlation.abs()).clamp(min=0).fill_diagonal_(0)
    tree = linkage(squareform(distance.numpy(), checks=False), method)
    cluster = torch.from_numpy(fcluster(tree, count, "maxclust"))
    return [(cluster == number).nonzero()[:, 0] for number in cluster.unique()]


def representatives(correlation: Tensor, informative: int) -> list[int]:
    """From each of I clusters, the channel that is most correlated with the rest of its cluster."""
    members = clusters(correlation, informative, "complete")
    return [int(m[correlation[m][:, m].abs().sum(1).argmax()]) for m in members]


def trained_with(chosen: list[int], steps: int, seed: int = 0) -> float:
    """Validation bits/dim of a small model of photographs in pixels with these informative channels."""
    torch.manual_seed(seed)
    config = dataclasses.replace(CONFIG, patch_basis="pixel", flow_width=64, prior_width=64)
    model, train = Farmer(config), load_split("photographs", "train", config)
    rest = [channel for channel in range(config.token_channels) if channel not in chosen]
    model.prior.channel_order = torch.tensor(chosen + rest)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        rows = torch.randint(len(train), (32,))
        noise = torch.rand(32, *train.values.shape[1:])
        loss = -model(model.dequantiser(train.values[rows], noise), train.labels[rows]).total.mean()
        optimiser.zero_grad()
        (loss / config.dimensions).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    validation = load_split("photographs", "validation", config)
    return bits_per_dim(model.eval(), validation.values, validation.labels, draws=2).mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    counts = list(range(17))
    for count, (own, other) in zip(
        counts, shares(Farmer.from_pretrained("mnist"), counts), strict=True
    ):
        print(
            f"the first {count:2} of 16 exchanged: own class {own:.0%}, the donor's {other:.0%}",
            flush=True,
        )

    train, unseen = patches("train"), patches("validation")
    correlation = train.T.corrcoef()
    print("three clusters:", [m.tolist() for m in clusters(correlation, 3, "average")])
    first, chosen = list(range(12)), representatives(correlation, 12)
    generator = torch.Generator().manual_seed(0)
    random = [torch.randperm(48, generator=generator)[:12].tolist() for _ in range(100)]
    shares = torch.tensor([unexplained(some, train, unseen) for some in random])
    print(f"unexplained: the first {unexplained(first, train, unseen):.1%}", end=", ")
    print(f"representatives {unexplained(chosen, train, unseen):.1%}", end=", ")
    print(f"random {shares.mean():.1%} ({shares.min():.1%} to {shares.max():.1%})")
    for seed in (0, 1):
        for name, some in (
            ("the first", first),
            ("representatives", chosen),
            ("random", random[seed]),
        ):
            bits = trained_with(some, steps=100, seed=seed)
            print(f"seed {seed}, {name}: {bits:.2f} bits/dim on the validation split", flush=True)
