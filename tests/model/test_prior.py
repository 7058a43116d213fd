"""Eqs. 5, 7, 11, 14: the prior's likelihood, its causality, its cached sampling, K = 1. Float64, no weight at zero."""

import math
from functools import partial

import pytest
import torch
from conftest import SPLITS, jacobian, randomise_zeros, small_model

from farmer_ref.model.mixture import GaussianMixture
from farmer_ref.model.prior import AutoregressivePrior
from farmer_ref.support.errors import InputError


def latents(batch: int = 3, count: int = 9, channels: int = 8) -> torch.Tensor:
    return torch.randn(batch, count, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("variant", SPLITS)
def test_cached_sampling_equals_the_parallel_likelihood(variant, monkeypatch):
    """Each draw's log-probability under the mixture it was drawn from, summed, is the log_prob of the whole."""
    prior = small_model(**variant).prior
    drawn_from = []
    draw = GaussianMixture.sample

    def recording(mixture, generator=None):
        value = draw(mixture, generator)
        drawn_from.append(mixture.log_prob(value).reshape(len(value), -1).sum(1))
        return value

    monkeypatch.setattr(GaussianMixture, "sample", recording)
    labels = torch.tensor([0, 2, -1])
    z = prior.sample(labels, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(torch.stack(drawn_from).sum(0), prior.log_prob(z, labels), atol=1e-9)


def test_redundant_channels_can_be_drawn_again():
    """Fig. 7: Z_R from the shared mixture of Z_I and the label, its standard deviations times the temperature."""
    prior = small_model().prior
    labels = torch.tensor([0, 2, -1])
    z_informative, _ = prior.split(latents())
    shared = prior.mixtures(latents(), labels)[1]
    means = prior.sample_redundant(z_informative, labels, temperature=0.0, generator=torch.Generator().manual_seed(0))
    assert means.shape == (3, 9, 3)
    for image, mixture_means in zip(means, shared.mean, strict=True):
        assert (image[:, None] - mixture_means).abs().sum(-1).min(1).values.max() < 1e-9
    one, two = (
        prior.sample_redundant(z_informative, labels, temperature=t, generator=torch.Generator().manual_seed(0))
        for t in (1.0, 2.0)
    )
    assert torch.allclose(two - means, 2 * (one - means), atol=1e-9)
    first, second = (
        prior.sample(labels, redundant_temperature=t, generator=torch.Generator().manual_seed(0)) for t in (1.0, 0.0)
    )
    assert torch.equal(prior.split(first)[0], prior.split(second)[0])
    assert not torch.equal(prior.split(first)[1], prior.split(second)[1])


@pytest.mark.parametrize("final_permutation", [False, True])
def test_token_mixtures_see_only_what_was_read_before(final_permutation):
    prior = small_model(final_permutation=final_permutation).prior  # 3 blocks: the last reads forwards
    matrix = jacobian(lambda z: prior.mixtures(z)[0].mean, latents(1)).view(9, -1, 9, 8)
    for i in range(9):
        for j in range(9):
            earlier = j > i if final_permutation else j < i
            assert (matrix[i, :, j].abs().max() > 0) == earlier
    assert matrix[..., 5:].abs().max() == 0  # and of the tokens only the informative channels


def test_shared_mixture_sees_all_informative_channels_and_no_redundant_one():
    prior = small_model().prior
    matrix = jacobian(lambda z: prior.mixtures(z)[1].mean, latents(1)).view(-1, 9, 8)
    assert (matrix[:, :, :5].abs().amax((0, 2)) > 0).all()
    assert matrix[:, :, 5:].abs().max() == 0


def test_normal_redundant_channels_are_standard_normal():
    prior = small_model(redundant_prior="normal").prior
    parts = prior.log_prob_parts(latents())
    z_redundant = prior.split(latents())[1]
    exact = -0.5 * (z_redundant.square() + math.log(2 * math.pi)).sum((1, 2))
    assert torch.allclose(parts.redundant, exact, atol=1e-9)


@pytest.mark.parametrize("rule", ["first", "interleaved"])
def test_split_and_merge_are_inverse(rule):
    prior = small_model(informative_channels=rule, informative=3).prior
    informative, redundant = prior.split(latents())
    assert (informative.shape[-1], redundant.shape[-1]) == (3, 5)
    assert torch.equal(prior.merge(informative, redundant), latents())
    chosen = [0, 1, 2] if rule == "first" else [0, 2, 5]
    assert torch.equal(informative, latents()[..., chosen])


def test_one_component_is_one_more_flow_block():
    """A.1 (Eqs. 16-18): with K = 1 the prior is an affine autoregressive map to N(0, I), token 1 included (a map of c).

    The block is built from the prior's outputs; its Jacobian is taken by autograd.
    """
    prior = small_model(informative=None, components=1).prior
    labels = torch.tensor([1])

    def block(z):
        mixture = prior.mixtures(z, labels)[0]
        return (z - mixture.mean[:, :, 0]) * torch.exp(-mixture.log_scale[:, :, 0])

    z = latents(1)
    noise = block(z)
    assert not torch.allclose(noise[:, -1], z[:, -1])  # the token read first is transformed, too
    logdet = torch.linalg.slogdet(jacobian(block, z)).logabsdet
    base = -0.5 * (noise.square() + math.log(2 * math.pi)).sum()
    assert torch.allclose(prior.log_prob(z, labels), base + logdet, atol=1e-8)


@pytest.mark.parametrize("blocks", [2, 3])
def test_final_permutation_matters_for_even_and_odd_flows(blocks):
    on, off = small_model(flow_blocks=blocks), small_model(flow_blocks=blocks, final_permutation=False)
    off.load_state_dict(on.state_dict())
    assert on.prior.reverse == (blocks % 2 == 1)  # opposite to the last block, which is reversed when n is even
    assert (on.prior.log_prob(latents()) - off.prior.log_prob(latents())).abs().min() > 1e-3


def test_labels_matter_and_null_is_learned():
    prior = small_model().prior
    by_label = torch.stack([prior.log_prob(latents(), torch.full((3,), c)) for c in (-1, 0, 1, 2)])
    assert (by_label.diff(dim=0).abs() > 1e-6).all()
    assert torch.equal(prior.log_prob(latents()), by_label[0])


@pytest.mark.parametrize(("channels", "informative"), [(1, None), (2, 1)])
def test_prior_integrates_to_one(channels, informative):
    torch.manual_seed(0)
    prior = AutoregressivePrior(
        2,
        channels,
        layers=1,
        width=8,
        head_dim=8,
        num_classes=2,
        components=2,
        informative=informative,
        redundant_components=2,
    )
    randomise_zeros(prior, std=0.1)
    axis = torch.linspace(-8, 8, 301 if channels == 1 else 25, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * (2 * channels)).view(-1, 2, channels)
    with torch.no_grad():
        total = sum(
            prior.log_prob(part, torch.ones(len(part), dtype=torch.long)).exp().sum() for part in grid.split(100_000)
        )
    volume = float((axis[1] - axis[0]) ** (2 * channels))
    assert float(total) * volume == pytest.approx(1, abs=1e-3)


def test_labels_are_checked_here_too():
    """The last row is the null class: a label that is one too high would silently be no label."""
    prior = small_model().prior
    z = prior.sample([0, 1], generator=torch.Generator().manual_seed(0))
    assert torch.equal(prior.log_prob(z, [0, 1]), prior.log_prob(z, torch.tensor([0, 1])))
    uses = (prior.sample, partial(prior.log_prob, z), partial(prior.sample_redundant, prior.split(z)[0]))
    for use in uses:
        with pytest.raises(InputError, match="label is 3; allowed: 0 to 2"):
            use(torch.tensor([0, 3]))


def test_without_redundant_channels_none_are_drawn_again():
    prior = small_model(informative=None).prior
    assert prior.sample_redundant(torch.zeros(2, 9, 8, dtype=torch.float64), torch.tensor([0, 1])).shape == (2, 9, 0)


def test_samples_have_no_dropout_in_training_mode():
    """Nor has the condition, which is read as in training, all positions at once."""
    prior, labels = small_model(dropout=0.5).train().prior, torch.tensor([0, 1])
    first, again = (prior.sample(labels, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, again) and prior.training
    informative, _ = prior.split(first)
    pair = [prior.sample_redundant(informative, labels, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*pair) and not pair[0].requires_grad


@pytest.mark.parametrize("temperature", [-1.0, math.nan])
def test_temperatures_of_redundant_channels_are_checked(temperature):
    prior = small_model().prior
    informative, _ = prior.split(prior.sample(torch.tensor([0])))
    with pytest.raises(InputError, match="scale_temperature is"):
        prior.sample_redundant(informative, torch.tensor([0]), temperature=temperature)
