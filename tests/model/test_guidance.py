"""Eq. 15 and Alg. 1: the resampling rule against closed forms and integrals, where it drifts, the naive rule."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from conftest import small_model

from farmer_ref import Guidance
from farmer_ref.model import guidance as module
from farmer_ref.model.checks import draw_places
from farmer_ref.model.guidance import draw_pool, draw_token, effective_sample_size, weighed_candidates
from farmer_ref.model.mixture import GaussianMixture
from farmer_ref.support.errors import InputError


def mixture_1d(weights, means, scales, batch: int = 1) -> GaussianMixture:
    """The same one-dimensional mixture `batch` times."""
    logits, means, scales = (torch.tensor(values, dtype=torch.float64) for values in (weights, means, scales))
    parts = logits.log(), means[:, None], scales.log()[:, None]
    return GaussianMixture(*(part.expand(batch, *part.shape) for part in parts))


def normal(mean: float, scale: float, batch: int = 1) -> GaussianMixture:
    return mixture_1d([1.0], [mean], [scale], batch)


def drawn(conditional, unconditional, guidance, batch=20_000, seed=0, rounds=1):
    """Many draws of the rule, as one flat tensor."""
    generator = torch.Generator().manual_seed(seed)
    pair = conditional(batch), unconditional(batch)
    return torch.cat([draw_token(*pair, guidance=guidance, generator=generator).z.flatten() for _ in range(rounds)])


def candidates_of(pair, guidance, counts):
    """Candidates and log-weights, from seed 0."""
    return weighed_candidates(*pair, guidance=guidance, counts=counts, generator=torch.Generator().manual_seed(0))


def candidates(count: int, **changes) -> Guidance:
    return Guidance(candidates_conditional=count, candidates_unconditional=count, **changes)


def guided_normal(mean_c, scale_c, mean_u, scale_u, w):
    """Mean and standard deviation of N(mean_c, scale_c)^(1+w) / N(mean_u, scale_u)^w, where that is a Gaussian."""
    precision = (1 + w) / scale_c**2 - w / scale_u**2
    assert precision > 0
    return ((1 + w) * mean_c / scale_c**2 - w * mean_u / scale_u**2) / precision, precision**-0.5


def test_weights_that_are_not_finite_are_refused_before_a_gpu_sees_them(monkeypatch):
    """Where they end all that the process does there, unless a single draw is asked for."""
    monkeypatch.setattr(torch, "multinomial", lambda *_, **__: pytest.fail("not checked"))
    with pytest.raises(InputError, match="not finite"):
        draw_places(torch.tensor([[0.5, 0.5], [0.5, torch.nan]]), 3, None)


GAUSSIANS = (1.0, 0.8, 0.0, 1.2)


@pytest.mark.slow
def test_many_candidates_reach_the_closed_form():
    """Eq. 15 for two Gaussians: mean and standard deviation within 1% at 1,024 candidates of each."""
    for w in (0.5, 1.5, 3.0):
        mean, std = guided_normal(*GAUSSIANS, w)
        z = drawn(
            lambda b: normal(1.0, 0.8, b), lambda b: normal(0.0, 1.2, b), candidates(1024, scale=w), 2000, rounds=20
        )
        assert float(z.mean()) == pytest.approx(mean, rel=0.01)
        assert float(z.std()) == pytest.approx(std, rel=0.01)


def test_error_falls_with_the_number_of_candidates():
    mean, std = guided_normal(*GAUSSIANS, 2.0)
    errors = []
    for count in (2, 16, 256):
        z = drawn(lambda b: normal(1.0, 0.8, b), lambda b: normal(0.0, 1.2, b), candidates(count, scale=2.0), 10_000)
        errors.append(abs(float(z.mean()) - mean) / std)
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02


def test_resampling_equals_a_dense_integral():
    """Two 1-D mixtures: moments and histogram of the draws against p_c^(1+w) / p_u^w on a grid."""
    parts = ([0.3, 0.7], [-1.0, 1.0], [0.4, 0.5]), ([0.5, 0.3, 0.2], [-1.0, 0.5, 2.0], [0.9, 0.8, 1.0])
    w, grid = 1.0, torch.linspace(-6, 6, 4001, dtype=torch.float64)
    log_c, log_u = (mixture_1d(*part).unsqueeze().log_prob(grid[None, :, None])[0] for part in parts)
    density = torch.softmax((1 + w) * log_c - w * log_u, 0)
    mean = float((density * grid).sum())
    std = math.sqrt(float((density * (grid - mean) ** 2).sum()))
    z = drawn(lambda b: mixture_1d(*parts[0], b), lambda b: mixture_1d(*parts[1], b), candidates(128, scale=w), 10_000)
    assert float(z.mean()) == pytest.approx(mean, abs=0.02)
    assert float(z.std()) == pytest.approx(std, rel=0.02)
    edges = torch.linspace(-3, 3, 13, dtype=torch.float64)
    expected = torch.stack([density[(grid >= a) & (grid < b)].sum() for a, b in pairwise(edges)])
    measured = torch.histogram(z, edges).hist / len(z)
    assert (measured - expected).abs().max() < 0.015


def test_the_unconditional_candidates_need_w_plus_1():
    """Alg. 1 against A.2, which prints w for both: only w + 1 makes a pool of p_u alone converge to Eq. 15."""
    mean, std = guided_normal(*GAUSSIANS, 1.0)
    pair = normal(1.0, 0.8, 20_000), normal(0.0, 1.2, 20_000)
    z, log_weights = candidates_of(pair, Guidance(scale=1.0), (0, 256))
    estimate = float((log_weights.softmax(1) * z[..., 0]).sum(1).mean())
    wrong = float(((log_weights / 2).softmax(1) * z[..., 0]).sum(1).mean())
    assert abs(estimate - mean) < 0.02 * std < 0.2 * std < abs(wrong - mean)


def test_an_improper_target_drifts_with_the_number_of_candidates():
    """(1 + w) / sigma_c^2 < w / sigma_u^2: p' has no finite integral, and the spread grows without end."""
    spreads = [
        float(
            drawn(
                lambda b: normal(0.0, 1.2, b), lambda b: normal(0.0, 1.0, b), candidates(count, scale=3.0), 5000
            ).std()
        )
        for count in (5, 50, 500)
    ]
    assert spreads[0] + 0.4 < spreads[1] and spreads[1] + 0.4 < spreads[2]


def test_scale_0_is_plain_sampling_draw_for_draw():
    model = small_model()
    labels = torch.tensor([0, 1, 2, -1])
    plain, guided = (
        model.prior.sample(labels, guidance, generator=torch.Generator().manual_seed(0))
        for guidance in (None, Guidance(scale=0.0, candidates_conditional=7, resampling_temperature=3.0))
    )
    assert torch.equal(plain, guided)


def test_scale_0_obeys_the_temperatures():
    mixture = mixture_1d([0.2, 0.8], [-2.0, 2.0], [0.5, 0.5], 1000)
    still = Guidance(weight_temperature=100.0, scale_temperature=0.0)
    assert (draw_token(mixture, None, guidance=still).z == 2.0).all()
    pool = draw_pool(mixture, None, tokens=3, guidance=still)
    assert pool.z.shape == (1000, 3, 1) and (pool.z == 2.0).all() and pool.distinct is None


@pytest.mark.parametrize(("own", "redundant"), [(1.0, 0.0), (0.0, 1.0)])
def test_the_redundant_temperature_multiplies_t_sigma_under_guidance(own, redundant):
    prior = small_model().prior
    labels, guidance = torch.tensor([0, 1]), Guidance(scale=2.0, scale_temperature=own)
    z = prior.sample(labels, guidance, redundant_temperature=redundant, generator=torch.Generator().manual_seed(0))
    for row, label in enumerate(labels):
        means = [prior.mixtures(z[row : row + 1], given)[1].mean[0] for given in (label[None], None)]
        distance = (prior.split(z)[1][row][:, None] - torch.cat(means)).abs().sum(-1).min(1).values
        assert distance.max() < 1e-9  # every redundant vector is a mean of p_c or p_u


def test_the_rule_without_the_shortcut_approaches_the_conditional_at_scale_0():
    """At w = 0 candidates of p_u weigh p_c / p_u and can win: a bias at 5 + 5 candidates, which more of them remove."""
    means, stds = [], []
    for count in (5, 400):
        pair = normal(1.0, 0.5, 8000), normal(0.0, 1.0, 8000)
        z, log_weights = candidates_of(pair, Guidance(), (count, count))
        chosen = torch.multinomial(log_weights.softmax(1), 1, generator=torch.Generator().manual_seed(1))
        picked = z[..., 0].gather(1, chosen)
        means.append(abs(float(picked.mean()) - 1.0))
        stds.append(abs(float(picked.std()) - 0.5))
    print(f"bias at 5 + 5 candidates: mean {means[0]:.3f}, standard deviation {stds[0]:.3f}")
    assert means[0] > 0.01 > means[1]
    assert stds[1] < 0.01


def test_guidance_with_equal_mixtures_changes_nothing():
    z = drawn(lambda b: normal(0.5, 0.7, b), lambda b: normal(0.5, 0.7, b), Guidance(scale=4.0))
    assert float(z.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(z.std()) == pytest.approx(0.7, rel=0.02)


def test_every_temperature_acts_where_it_says():
    pair = mixture_1d([0.2, 0.8], [-2.0, 2.0], [0.5, 0.5]), normal(0.0, 2.0)

    def weigh(**changes):
        return candidates_of(pair, Guidance(scale=1.0, **changes), (64, 64))

    z, log_weights = weigh()
    narrow, _ = weigh(scale_temperature=0.0)
    assert set(narrow[0, :64, 0].tolist()) == {-2.0, 2.0}  # means alone
    sharp, _ = weigh(weight_temperature=100.0)
    assert (sharp[0, :64, 0] > 0).all()  # the heavier component alone: larger is sharper
    same, doubled = weigh(resampling_temperature=2.0)
    assert torch.equal(same, z) and torch.allclose(doubled, 2 * log_weights)
    for name, value in (("scoring_weight_temperature", 0.2), ("scoring_scale_temperature", 0.9)):
        same, other = weigh(**{name: value})
        tempered = {name.removeprefix("scoring_"): value}
        log_c, log_u = (mixture.tempered(**tempered).unsqueeze().log_prob(z) for mixture in pair)
        exponent = torch.tensor([1.0] * 64 + [2.0] * 64)
        assert torch.equal(same, z) and torch.allclose(other, exponent * (log_c - log_u))


def test_so_many_candidates_come_from_each_side():
    """T_s = 0 makes all weights equal: p_c, on the right, wins with the share of its candidates."""
    guidance = Guidance(
        scale=1.0,
        resampling_temperature=0.0,
        candidates_conditional=7,
        candidates_unconditional=2,
        redundant_candidates_conditional=3,
        redundant_candidates_unconditional=5,
    )
    pair, generator = (normal(1.0, 0.1, 20_000), normal(-1.0, 0.1, 20_000)), torch.Generator().manual_seed(0)
    for draw, share in ((draw_token, 7 / 9), (partial(draw_pool, tokens=2), 3 / 8)):
        z = draw(*pair, guidance=guidance, generator=generator).z
        assert float((z > 0).double().mean()) == pytest.approx(share, abs=0.015)


def test_effective_sample_size():
    assert effective_sample_size(torch.zeros(3, 8)).tolist() == [8.0] * 3
    one = torch.full((8,), -1e9).index_fill(0, torch.tensor([2]), 0.0)
    assert float(effective_sample_size(one)) == 1.0
    assert float(effective_sample_size(torch.tensor([0.0, math.log(3.0)]))) == pytest.approx(16 / 10)


def test_importance_weights_collapse_as_channels_grow():
    """A mean shift of .1 per channel: the pool of redundant vectors shrinks to a handful (our own measurement)."""
    guidance, sizes = Guidance(scale=1.5), []
    for channels in (2, 36, 640):
        zeros = torch.zeros(16, 1, channels, dtype=torch.float64)
        pair = [GaussianMixture(zeros[..., 0], zeros + shift, zeros) for shift in (0.1, 0.0)]
        pool = draw_pool(*pair, tokens=256, guidance=guidance, generator=torch.Generator().manual_seed(0))
        assert pool.z.shape == (16, 256, channels)
        assert [len(image.unique(dim=0)) for image in pool.z] == pool.distinct.tolist()
        sizes.append(float(pool.effective_sample_size.mean()))
    assert sizes[0] > 200 > 150 > sizes[1] > 50 > 10 > sizes[2]
    assert float(pool.distinct.double().mean()) < 30


GRID = torch.linspace(-60, 60, 60_001, dtype=torch.float64)
BATCH = 25_000


def naive(conditional, unconditional, seed=0, **changes):
    """Draws (B,D) of the naive rule."""
    guidance, generator = Guidance(rule="naive", **changes), torch.Generator().manual_seed(seed)
    return draw_token(conditional, unconditional, guidance=guidance, generator=generator).z


def naive_density(mean_c, scale_c, mean_u, scale_u, w, envelope="published"):
    """The density on GRID of what the naive rule draws from two Gaussians, by sums, and the share that falls back.

    An envelope that is "exact" is never below the guided density, as rejection sampling should have it.
    """

    def log_guided(x):
        return (1 + w) * given.log_prob(x) - w * null.log_prob(x)

    pairs = (mean_c, scale_c), (mean_u, scale_u), (mean_c, 2 * max(scale_c, scale_u))
    given, null, proposal = (
        torch.distributions.Normal(torch.tensor(mean).double(), torch.tensor(scale).double()) for mean, scale in pairs
    )
    if envelope == "published":
        grid = mean_c + torch.linspace(-10, 10, 1001, dtype=torch.float64)
        log_factor = log_guided(grid).max() - proposal.log_prob(given.mean)
    else:
        log_factor = (log_guided(GRID) - proposal.log_prob(GRID)).max()
    probability = torch.exp(log_guided(GRID) - log_factor - proposal.log_prob(GRID)).clamp(max=1)
    accepted = proposal.log_prob(GRID).exp() * probability
    share = float(accepted.sum() * (GRID[1] - GRID[0]))
    fallback = (1 - share) ** 1000
    return (1 - fallback) * accepted / share + fallback * given.log_prob(GRID).exp(), fallback


def distance_to(density, draws) -> float:
    """The Kolmogorov-Smirnov distance of draws to a density on GRID."""
    mass = density * (GRID[1] - GRID[0])
    below = mass.cumsum(0) - mass / 2
    at_most = torch.searchsorted(draws.flatten().sort().values, GRID, right=True) / draws.numel()
    return float((at_most - below).abs().max())


NAIVE = {  # mean_c, scale_c, mean_u, scale_u, w; and about the share that falls back
    "proper": ((1.0, 0.8, 0.0, 1.2, 2.0), 0.0),
    "proper, away from the mean of p_c": ((0.5, 0.7, -0.5, 0.8, 2.0), 0.0),
    "proper, beyond the grid": ((0.0, 3.0, -6.0, 3.0, 2.0), 0.0),
    "proper, beyond the proposals": ((0.0, 0.1, -1.0, 0.1, 2.0), 1.0),
    "improper, accepted where it is large": ((0.3, 3.0, 0.0, 2.5, 3.0), 0.0),
    "improper, accepted far out": ((0.3, 1.2, 0.0, 1.0, 3.0), 0.54),
    "improper, hardly accepted": ((0.0, 0.5, 0.0, 0.43, 3.0), 0.88),
    "improper, not accepted": ((0.0, 0.5, 0.0, 0.42, 3.0), 1.0),
    "w = 0": ((1.0, 0.8, 0.0, 1.2, 0.0), 0.0),
    "the same twice": ((1.0, 0.8, 1.0, 0.8, 4.0), 0.0),
}


@pytest.mark.parametrize("name", NAIVE)
def test_the_naive_rule_equals_a_dense_integral(name):
    """The draws as published: the lower of the guided density and the envelope, or p_c after 1,000 tries."""
    parameters, expected = NAIVE[name]
    density, fallback = naive_density(*parameters)
    assert fallback == pytest.approx(expected, abs=0.01)
    pair = normal(*parameters[:2], BATCH), normal(*parameters[2:4], BATCH)
    z = naive(*pair, scale=parameters[-1])
    assert z.shape == (BATCH, 1) and z.dtype == torch.float64
    assert distance_to(density, z) < 2 / BATCH**0.5


def test_the_naive_rule_has_the_published_envelope():
    """It lies below the guided density around a peak away from the mean of p_c; an exact one would draw otherwise."""
    parameters = NAIVE["proper, away from the mean of p_c"][0]
    z = naive(normal(*parameters[:2], BATCH), normal(*parameters[2:4], BATCH), scale=2.0)
    assert distance_to(naive_density(*parameters, envelope="exact")[0], z) > 0.02


def test_the_naive_rule_finds_the_envelope_on_the_published_grid():
    """A peak of width .012 between two points of it, which are .02 apart: with another grid, other draws."""
    parameters = 0.0, 0.012, -0.0055, 0.012, 2.0
    z = naive(normal(*parameters[:2], BATCH), normal(*parameters[2:4], BATCH), scale=2.0)
    density, exact = (naive_density(*parameters, envelope=envelope)[0] for envelope in ("published", "exact"))
    assert distance_to(density, z) < 0.02 < 0.05 < distance_to(exact, z)


def test_the_naive_rule_pairs_components_by_number():
    """A draw of p_c's component k is guided by p_u's component k, in the order that the mixtures happen to have."""
    weights, parts_c, parts_u = [0.3, 0.7], [(-1.0, 0.4), (1.0, 0.5)], [(0.5, 0.8), (-1.0, 0.9)]

    def mixture(weights, parts):
        return mixture_1d(weights, *zip(*parts, strict=True), BATCH)

    density = sum(
        weight * naive_density(*given, *null, 1.0)[0]
        for weight, given, null in zip(weights, parts_c, parts_u, strict=True)
    )
    z = naive(mixture(weights, parts_c), mixture([0.9, 0.1], parts_u), scale=1.0)
    assert distance_to(density, z) < 2 / BATCH**0.5
    swapped = naive(mixture(weights, parts_c), mixture([0.1, 0.9], parts_u[::-1]), scale=1.0)
    assert distance_to(density, swapped) > 0.1


def test_the_naive_rule_accepts_each_channel_by_itself():
    """One channel never accepts and falls back to p_c; its neighbour is guided all the same."""
    first, second = (NAIVE[name][0] for name in ("proper", "proper, beyond the proposals"))
    zeros = torch.zeros(BATCH, 1, dtype=torch.float64)
    pair = []
    for at in (0, 2):
        mean, scale = (torch.tensor([[first[at + i], second[at + i]]], dtype=torch.float64) for i in (0, 1))
        pair.append(GaussianMixture(zeros, mean.expand(BATCH, 1, 2), scale.log().expand(BATCH, 1, 2)))
    z = naive(*pair, scale=2.0)
    for channel, parameters in enumerate((first, second)):
        assert distance_to(naive_density(*parameters)[0], z[:, channel]) < 2 / BATCH**0.5
    assert torch.corrcoef(z.T)[0, 1].abs() < 0.02


def test_the_naive_rule_follows_the_generator():
    pair = normal(0.3, 1.2, 50), normal(0.0, 1.0, 50)  # some accept early, some late, some never
    a, b, c = (naive(*pair, seed=seed, scale=3.0) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_naive_rule_obeys_the_temperatures():
    mixture = mixture_1d([0.2, 0.8], [-2.0, 2.0], [0.5, 0.5], 100)
    still = naive(mixture, mixture, scale=1.0, weight_temperature=100.0, scale_temperature=0.0)
    assert torch.equal(still, torch.full((100, 1), 2.0).double())
    halved = naive(normal(1.0, 0.8, BATCH), normal(0.0, 1.2, BATCH), scale=2.0, scale_temperature=0.5)
    assert distance_to(naive_density(1.0, 0.4, 0.0, 0.6, 2.0)[0], halved) < 2 / BATCH**0.5


@pytest.mark.parametrize("rule", ["resampling", "naive"])
@pytest.mark.parametrize("informative", [5, None])
def test_the_report_of_a_guided_sample(rule, informative):
    model = small_model(informative=informative)
    labels = torch.tensor([0, 1, 2, -1])
    guidance = Guidance(scale=2.0, rule=rule, redundant_candidates_conditional=20, redundant_candidates_unconditional=4)
    z, report = model.prior.sample_with_report(labels, guidance, generator=torch.Generator().manual_seed(0))
    assert z.shape == (4, 9, 8) and z.isfinite().all()
    if rule == "naive":
        assert report == (None, None, None)
        return
    assert report.effective_sample_size.shape == (4, 9)
    assert (report.effective_sample_size >= 1).all() and (report.effective_sample_size <= 10 + 1e-9).all()
    assert torch.allclose(report.effective_sample_size[3], torch.full((9,), 10.0).double())  # no label: p_c is p_u
    if informative is None:
        assert report.redundant_effective_sample_size is None
    else:
        assert (report.redundant_effective_sample_size <= 24 + 1e-9).all()
        assert (report.distinct_redundant >= 1).all() and (report.distinct_redundant <= 9).all()


def test_conditional_and_unconditional_rows_are_not_mixed_up(monkeypatch):
    """The pair that a rule is given, against two separate passes of the prior."""
    from farmer_ref.model import prior as prior_module

    prior, pairs, sizes = small_model().prior, [], []

    def recording(conditional, unconditional, **options):
        pairs.append((conditional.mean, unconditional.mean))
        found = draw_token(conditional, unconditional, **options)
        sizes.append(found.effective_sample_size)
        return found

    monkeypatch.setattr(prior_module, "draw_token", recording)
    labels = torch.tensor([2, 0])
    z, report = prior.sample_with_report(labels, Guidance(scale=1.0), generator=torch.Generator().manual_seed(0))
    assert prior.reverse and torch.equal(report.effective_sample_size, torch.stack(sizes[::-1], 1))  # image order
    for side, given in enumerate((labels, None)):
        means = prior.flip_if_reversed(prior.mixtures(z, given)[0].mean.flatten(2)).unflatten(2, (3, 5))
        assert torch.allclose(torch.stack([pair[side] for pair in pairs], 1), means, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": -1.0}, r"guidance.scale is -1.0; allowed: 0 to 1,000,000"),
        ({"rule": "magic"}, "rule is 'magic'; allowed: resampling, naive"),
        ({"scale": math.inf}, "guidance.scale is inf; allowed: a finite number, 0 to 1,000,000"),
        ({"candidates_unconditional": 2.5}, "candidates_unconditional is 2.5; allowed: a whole number"),
        ({"candidates_conditional": 0}, "candidates_conditional is 0; allowed: 1 to 1,000,000"),
        (
            {"scoring_scale_temperature": 0.0},
            "scoring_scale_temperature is 0.0; allowed: above 0 and at most 1,000,000",
        ),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        Guidance(**changes)


def test_the_naive_rule_does_not_copy_the_shared_mixture_for_every_token(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "draw_naive", lambda *pair, **_: seen.extend(pair) or torch.zeros(2, 50, 3))
    pair = [GaussianMixture(torch.zeros(2, 4), torch.zeros(2, 4, 3), torch.zeros(2, 4, 3)) for _ in range(2)]
    draw_pool(*pair, tokens=50, guidance=Guidance(scale=1.0, rule="naive", scale_temperature=0.5))
    assert [mixture.log_scale.shape for mixture in seen] == [(2, 50, 4, 3)] * 2
    assert all(part.stride(1) == 0 for mixture in seen for part in (mixture.logits, mixture.mean, mixture.log_scale))
