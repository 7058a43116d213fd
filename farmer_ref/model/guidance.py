"""Guidance by resampling, and the naive rule beside it: pure functions of two mixtures (§3.4, A.2, Alg. 1).

Guidance sharpens a class: it wants samples of p'(z) ~ p_c(z) (p_c(z) / p_u(z))^w, with p_c given the class, p_u without
and w the guidance scale (Eq. 15). That density is known up to a constant, and cannot be sampled directly. So one draws
*candidates* from p_c and from p_u, weighs each by p' over the density it came from, and picks one by weight: a
self-normalised importance sampler. With all temperatures at 1 it converges to p' as candidates are added, provided that
p' has a finite integral. Where it has none (p_u falls off faster than p_c, roughly), or with other temperatures, as in
the paper, it is a heuristic and the number of candidates a parameter of the result.

Legend: B batch, S = s_c + s_u candidates, N tokens, D channels of the vectors drawn (I or R of a token's).
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from farmer_ref.model.checks import draw_places
from farmer_ref.model.mixture import GaussianMixture
from farmer_ref.support.settings import Count, CountOrNone, Factor, PositiveFactor, settings_class

NAIVE_TRIES, TRIES_AT_ONCE = 1000, 20  # as published; ours, to bound memory
GRID_REACH, GRID_STEP = 10.0, 0.02  # the naive rule's envelope is found on 1,001 points around mu_c (as published)


@settings_class(known_as="guidance")
class Guidance:
    """How samples are drawn (A.2, Table 6). T_pi and T_s multiply logits: larger is *sharper*, not flatter.

    >>> from farmer_ref import Guidance
    >>> guidance = Guidance(scale=1.5, resampling_temperature=1.1)
    >>> guidance.rule, guidance.candidates_conditional
    ('resampling', 5)
    """

    scale: Factor = field(default=0.0, kw_only=False)
    """w: 0 draws from p_c alone, without candidates (Alg. 1 at w = 0 would still let candidates of p_u win)."""
    candidates_conditional: Count = 5
    """s_c, candidates of a token from p_c."""
    candidates_unconditional: CountOrNone = 5
    """s_u, candidates of a token from p_u."""
    redundant_candidates_conditional: Count = 192
    """Candidates of an image's pool of redundant vectors from p_c (the paper: "larger"; the number is ours)."""
    redundant_candidates_unconditional: CountOrNone = 64
    """Candidates of that pool from p_u (ours)."""
    weight_temperature: Factor = 1.0
    """T_pi: the mixtures' logits are multiplied by it for drawing."""
    scale_temperature: Factor = 1.0
    """T_sigma: the components' standard deviations are multiplied by it for drawing."""
    scoring_weight_temperature: Factor = 1.0
    """T_pi,v: as T_pi, where candidates are weighed."""
    scoring_scale_temperature: PositiveFactor = 1.0
    """T_sigma,v: as T_sigma, where candidates are weighed."""
    resampling_temperature: Factor = 1.0
    """T_s: the log-weights are multiplied by it."""
    rule: Literal["resampling", "naive"] = "resampling"
    """FARMER's rule, or that of JetFormer and GIVT: rejection sampling from the guided density of two components with
    the same index, without candidates, scoring temperatures or a resampling temperature."""


class Drawn(NamedTuple):
    """The vectors drawn. `effective_sample_size` (B,): how many of the candidates count. `distinct` (B,): how many of
    them the N tokens of an image took. None where nothing was resampled."""

    z: Tensor
    effective_sample_size: Tensor | None = None
    distinct: Tensor | None = None


def draw_token(
    conditional: GaussianMixture,
    unconditional: GaussianMixture | None,
    *,
    guidance: Guidance,
    generator: torch.Generator | None = None,
) -> Drawn:
    """One token (B,D) from p' for each of B pairs of mixtures, and its effective sample size (B,)   (Alg. 1).

    `unconditional` is None where `guidance.scale` is 0.
    """
    if unconditional is None or not guidance.scale:
        return Drawn(_tempered(conditional, guidance).sample(generator))
    if guidance.rule == "naive":
        pair = (_tempered(mixture, guidance) for mixture in (conditional, unconditional))
        return Drawn(draw_naive(*pair, guidance=guidance, generator=generator))
    counts = guidance.candidates_conditional, guidance.candidates_unconditional
    candidates, log_weights = weighed_candidates(
        conditional, unconditional, guidance=guidance, counts=counts, generator=generator
    )
    chosen = draw_places(log_weights.softmax(-1), 1, generator)  # (B,1)
    return Drawn(_take(candidates, chosen)[:, 0], effective_sample_size(log_weights))


def draw_pool(
    conditional: GaussianMixture,
    unconditional: GaussianMixture | None,
    *,
    tokens: int,
    guidance: Guidance,
    generator: torch.Generator | None = None,
) -> Drawn:
    """The redundant channels (B,N,D) of N tokens that share a mixture, and how many candidates counted   (Alg. 1).

    One pool of candidates per image; each token takes one of them by weight, with replacement. The more channels, the
    fewer candidates count, and the more tokens take the same vector; even where p_c = p_u, tokens share some.
    """
    if unconditional is None or not guidance.scale:
        return Drawn(_tempered(conditional, guidance).unsqueeze().expand(tokens).sample(generator))
    if guidance.rule == "naive":
        # Tempered first, then expanded to views: as numbers, N K R of them would be many.
        each = (_tempered(mixture, guidance).unsqueeze().expand(tokens) for mixture in (conditional, unconditional))
        return Drawn(draw_naive(*each, guidance=guidance, generator=generator))
    counts = guidance.redundant_candidates_conditional, guidance.redundant_candidates_unconditional
    candidates, log_weights = weighed_candidates(
        conditional, unconditional, guidance=guidance, counts=counts, generator=generator
    )
    chosen = draw_places(log_weights.softmax(-1), tokens, generator)  # (B,N)
    taken = torch.zeros_like(log_weights).scatter_(1, chosen, 1.0)
    return Drawn(_take(candidates, chosen), effective_sample_size(log_weights), taken.sum(1).long())


def weighed_candidates(
    conditional: GaussianMixture,
    unconditional: GaussianMixture,
    *,
    guidance: Guidance,
    counts: tuple[int, int],
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Candidates (B,S,D), `counts` of them from p_c and p_u, and their log-weights (B,S)   (Alg. 1).

    log p'/p_c = w (log p_c - log p_u) for a candidate of p_c, and log p'/p_u = (w + 1) (log p_c - log p_u) for one of
    p_u (so Alg. 1; A.2 prints w for both), each up to the same constant.
    """
    drawn = [
        _tempered(mixture, guidance).unsqueeze().expand(count).sample(generator)
        for mixture, count in zip((conditional, unconditional), counts, strict=True)
    ]
    candidates = torch.cat(drawn, 1)  # (B,S,D)
    scoring = guidance.scoring_weight_temperature, guidance.scoring_scale_temperature
    log_conditional, log_unconditional = (
        mixture.tempered(*scoring).log_prob_shared(candidates) for mixture in (conditional, unconditional)
    )
    exponent = candidates.new_tensor([guidance.scale] * counts[0] + [guidance.scale + 1] * counts[1])
    return candidates, guidance.resampling_temperature * exponent * (log_conditional - log_unconditional)


def draw_naive(
    conditional: GaussianMixture,
    unconditional: GaussianMixture,
    *,
    guidance: Guidance,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A draw (...,D) of the naive rule of GIVT and JetFormer, the paper's baseline (Table 3).

    Draw a component k of p_c and take component k of both mixtures, whether or not these two have to do with one
    another. Each channel by itself then goes through at most 1,000 tries of rejection sampling for the guided density
    g(x) = N(x; mu_c, sigma_c)^(1+w) / N(x; mu_u, sigma_u)^w. Proposals are q = N(mu_c, 2 max(sigma_c, sigma_u)); one is
    accepted with probability g(x) / (g_max q(x) / q(mu_c)), or 1 where that is larger, with g_max the maximum of g on
    1,001 points from mu_c - 10 to mu_c + 10. A channel that accepts none keeps its draw from component k of p_c.

    This follows their public code, one function for both (big_vision, models/proj/givt/parallel_decode.py, CFGDensity).
    Around a peak away from mu_c its envelope g_max q(x) / q(mu_c) is lower than g; draws follow the lower of the two,
    and so stay within reach of q. Where g has no finite integral, g_max lies at an end of the grid: few proposals are
    accepted or none, and those few lie far out. Ours: g_max from the parabola log g in place of the grid itself;
    logarithms, where the code may overflow and fall back. The mixtures are given with T_pi and T_sigma applied to both;
    T_pi,v, T_sigma,v and T_s have no part in this rule.
    """
    w = guidance.scale
    component = conditional.draw_component(generator)
    (mean, log_scale), (other_mean, other_log_scale) = (m.component(component) for m in (conditional, unconditional))
    if not guidance.scale_temperature:  # sigma = 0: the mean is all there is
        return mean

    # Up to a constant, log g = -precision d^2 / 2 - slope d, with d = x - mu_c.
    weight, other_weight = (1 + w) * torch.exp(-2 * log_scale), w * torch.exp(-2 * other_log_scale)
    precision, slope = weight - other_weight, other_weight * (other_mean - mean)
    nearest = (-slope / precision / GRID_STEP).nan_to_num(0.0).round() * GRID_STEP  # to the top of the parabola
    end = torch.full_like(mean, GRID_REACH)
    on_grid = torch.stack([-end, end, nearest.clamp(-GRID_REACH, GRID_REACH)])  # if it has none, an end is highest
    log_maximum = (-precision * on_grid.square() / 2 - slope * on_grid).amax(0)
    width = 2 * torch.maximum(log_scale, other_log_scale).exp()

    options = {"generator": generator, "device": mean.device, "dtype": mean.dtype}
    drawn = (log_scale.exp() * torch.randn(mean.shape, **options)).flatten()  # d of p_c, until a proposal is accepted
    pending = torch.arange(len(drawn), device=mean.device)
    constants = torch.stack([precision, slope, log_maximum, width]).flatten(1)
    for _ in range(NAIVE_TRIES // TRIES_AT_ONCE):
        precision, slope, log_maximum, width = constants[:, pending]
        unit, uniform = (draw(TRIES_AT_ONCE, len(pending), **options) for draw in (torch.randn, torch.rand))
        proposed = width * unit
        log_g = -precision * proposed.square() / 2 - slope * proposed
        accepted = uniform.log() < log_g - log_maximum + unit.square() / 2
        found, first = accepted.any(0), accepted.int().argmax(0, keepdim=True)
        drawn[pending[found]] = proposed.gather(0, first)[0, found]
        pending = pending[~found]
    return mean + drawn.view_as(mean)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of log-weights (...,S): how many equally weighted candidates would do as well, 1 to S."""
    return 1 / log_weights.softmax(-1).square().sum(-1)


def _tempered(mixture: GaussianMixture, guidance: Guidance) -> GaussianMixture:
    return mixture.tempered(guidance.weight_temperature, guidance.scale_temperature)


def _take(candidates: Tensor, chosen: Tensor) -> Tensor:
    """The rows `chosen` (B,n) of candidates (B,S,D): (B,n,D)."""
    return candidates.gather(1, chosen[..., None].expand(-1, -1, candidates.shape[-1]))
