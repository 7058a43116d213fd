"""Solutions of notebook 04: an honest p_u, targets without an integral, and guidance against temperatures."""

from __future__ import annotations

import math
from statistics import mean, stdev

import torch
from torch import Tensor

from farmer_ref import Farmer, Guidance
from farmer_ref.data.sets import batches, load_split
from farmer_ref.evaluation.metrics import PixelClassifier, frechet_distance


def share_beyond_honesty(model: Farmer, z: Tensor, labels: Tensor) -> float:
    """The share of latents z (B,N,D) whose p_c is more than ten times p_u."""
    with torch.no_grad():
        log_ratio = model.prior.log_prob(z, labels) - model.prior.log_prob(z)
    return float((log_ratio > math.log(10)).double().mean())


def share_improper(model: Farmer, z: Tensor, labels: Tensor, w: float) -> float:
    """The share of tokens of z (B,N,D) whose target has no finite integral along some channel."""
    with torch.no_grad():
        given, _ = model.prior.mixtures(z, labels)
        null, _ = model.prior.mixtures(z)
    widest_c = given.log_scale.amax(-2).exp()  # (B,N,I)
    widest_u = null.log_scale.amax(-2).exp()
    improper = (1 + w) / widest_c**2 <= w / widest_u**2
    return float(improper.any(-1).double().mean())


def distance_with_candidates(
    model: Farmer, count: int, classifier: PixelClassifier, real: Tensor
) -> float:
    """Fréchet distance to real images of 1,000 samples at w = 4 with `count` candidates of each kind."""
    guidance = Guidance(scale=4.0, candidates_conditional=count, candidates_unconditional=count)
    labels, generator = torch.arange(10).repeat(100), torch.Generator().manual_seed(0)
    with torch.no_grad():
        images = model.decode(model.prior.sample(labels, guidance, generator=generator))
    values = model.dequantiser.quantise(images)
    return frechet_distance(classifier.scores(values), classifier.scores(real))


def accuracy_and_diversity(
    model: Farmer, guidance: Guidance, *, classifier: PixelClassifier, seed: int, count: int
) -> tuple[float, float]:
    """The accuracy of samples, and their mean distance within a class, in grey levels."""
    labels = torch.arange(10).repeat(count // 10)
    with torch.no_grad():
        z = model.prior.sample(labels, guidance, generator=torch.Generator().manual_seed(seed))
        values = model.dequantiser.quantise(model.decode(z))
    within = [torch.pdist(values[labels == c].flatten(1).double()).mean() for c in range(10)]
    return classifier.accuracy(values, labels), float(torch.stack(within).mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = Farmer.from_pretrained("digits")
    classifier = PixelClassifier(load_split("digits", "train", model.config))
    labels = torch.arange(10).repeat(50)
    z = model.prior.sample(labels, generator=torch.Generator().manual_seed(0))
    print(
        f"p_c is more than ten times p_u: {share_beyond_honesty(model, z, labels):.0%} of samples"
    )
    for w in (0.5, 1.0, 2.0, 4.0):
        print(f"w = {w}: improper for {share_improper(model, z, labels, w):.1%} of tokens")
    real = next(batches(load_split("digits", "validation", model.config), 100))[0]
    for candidates in (2, 5, 20):
        distance = distance_with_candidates(model, candidates, classifier, real)
        print(f"w = 4, {candidates} candidates of each kind: Fréchet distance {distance:.2f}")
    ways = {f"w = {w}": Guidance(scale=w) for w in (0.0, 0.25, 0.5, 1.0)}
    ways |= {f"sigma times {t}": Guidance(scale_temperature=t) for t in (0.8, 0.6, 0.4)}
    ways |= {f"logits times {t}": Guidance(weight_temperature=t) for t in (1.5, 2.0, 3.0)}
    for name, guidance in ways.items():
        runs = [
            accuracy_and_diversity(model, guidance, classifier=classifier, seed=seed, count=1000)
            for seed in range(3)
        ]
        accuracy, distance = zip(*runs, strict=True)
        print(
            f"{name:17} accuracy {mean(accuracy):.1%} ± {stdev(accuracy):.1%}, "
            f"distance within a class {mean(distance):.2f} ± {stdev(distance):.2f} grey levels"
        )
