"""Eqs. 7 and 11 against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from farmer_ref.model.mixture import LOG_SCALE_FLOOR, GaussianMixture


def random_mixture(*batch: int, components: int = 4, channels: int = 3) -> GaussianMixture:
    torch.manual_seed(0)
    raw = torch.randn(*batch, components * (1 + 2 * channels), dtype=torch.float64)
    return GaussianMixture.from_raw(raw, components)


def reference(mixture: GaussianMixture) -> MixtureSameFamily:
    normal = Independent(Normal(mixture.mean, mixture.log_scale.exp()), 1)
    return MixtureSameFamily(Categorical(logits=mixture.logits), normal)


def test_log_prob_equals_torch_distributions():
    mixture = random_mixture(5, 2)
    z = torch.randn(5, 2, 3, dtype=torch.float64)
    assert torch.allclose(mixture.log_prob(z), reference(mixture).log_prob(z), atol=1e-12)


def test_one_mixture_shared_by_many_tokens():
    mixture = random_mixture(5)
    z = torch.randn(5, 7, 3, dtype=torch.float64)
    each = torch.stack([reference(mixture).log_prob(z[:, i]) for i in range(7)], 1)
    assert torch.allclose(mixture.unsqueeze().log_prob(z), each, atol=1e-12)
    assert torch.allclose(mixture.unsqueeze().expand(7).log_prob(z), each, atol=1e-12)


def test_samples_have_the_mixture_s_moments():
    mixture = random_mixture(1).unsqueeze().expand(200_000)
    drawn = mixture.sample(torch.Generator().manual_seed(1))[0]
    wanted = reference(random_mixture(1))
    assert torch.allclose(drawn.mean(0), wanted.mean[0], atol=0.02)
    assert torch.allclose(drawn.var(0), wanted.variance[0], rtol=0.03)


def test_temperatures_scale_logits_and_sigma():
    mixture = random_mixture(2)
    tempered = mixture.tempered(weight_temperature=2.0, scale_temperature=0.5)
    assert torch.allclose(tempered.logits, 2 * mixture.logits)
    assert torch.allclose(tempered.log_scale.exp(), 0.5 * mixture.log_scale.exp())
    means = mixture.tempered(scale_temperature=0.0).sample(torch.Generator().manual_seed(0))  # (2,D)
    assert ((means[:, None] - mixture.mean).abs().sum(-1).amin(-1) == 0).all()


def test_one_mixture_without_a_batch():
    assert random_mixture().sample(torch.Generator().manual_seed(0)).shape == (3,)


def test_scale_has_a_smooth_floor():
    raw = torch.tensor([[0.0, 0.0, -1e4]], dtype=torch.float64, requires_grad=True)  # one component, one channel
    assert GaussianMixture.from_raw(raw, 1).log_scale.item() == pytest.approx(LOG_SCALE_FLOOR)
    near = torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64)
    assert GaussianMixture.from_raw(near, 1).log_scale.item() == pytest.approx(0, abs=math.exp(LOG_SCALE_FLOOR))


def shared_case(tokens=7):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(3, 4 * (1 + 2 * 5), generator=generator, dtype=torch.float64, requires_grad=True)
    z = torch.randn(3, tokens, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    return raw, z


@pytest.mark.parametrize("directly", [0, 10**9])
def test_a_shared_density_multiplied_out_is_the_density(monkeypatch, directly):
    monkeypatch.setattr("farmer_ref.model.mixture.DIRECTLY", directly)
    raw, z = shared_case()
    mixture = GaussianMixture.from_raw(raw, 4)
    wanted = mixture.unsqueeze().log_prob(z)
    gradients = torch.autograd.grad(wanted.square().sum(), (raw, z), retain_graph=True)
    found = mixture.log_prob_shared(z)
    assert torch.allclose(found, wanted, atol=1e-12)
    for a, b in zip(torch.autograd.grad(found.square().sum(), (raw, z)), gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_narrow_components_keep_their_digits_multiplied_out():
    """Components at the floor of sigma, vectors among their means: terms of 10^6 cancel, in float32 to nothing."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 50, 64, generator=generator)
    z = mean[:, torch.arange(200) % 50] + 2e-3 * torch.randn(2, 200, 64, generator=generator)
    mixture = GaussianMixture(torch.zeros(2, 50), mean, torch.full_like(mean, LOG_SCALE_FLOOR))
    exact = GaussianMixture(mixture.logits.double(), mean.double(), mixture.log_scale.double())
    found, direct = mixture.log_prob_shared(z), mixture.unsqueeze().log_prob(z)
    wanted = exact.unsqueeze().log_prob(z.double())
    assert found.dtype == torch.float32 and wanted.abs().min() > 50
    assert (found - wanted).abs().max() <= 2 * (direct - wanted).abs().max()


def test_a_shared_density_of_a_large_image_keeps_no_number_per_component_and_channel():
    """N K_R R numbers an image are 33 million at patch 16: seconds of memory traffic in a step of a hundred."""
    mixture = GaussianMixture(torch.zeros(2, 64), torch.zeros(2, 64, 48, requires_grad=True), torch.zeros(2, 64, 48))
    z, sizes = torch.randn(2, 100, 48, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        mixture.log_prob_shared(z).sum().backward()
    assert max(sizes) <= 2 * 100 * 64 < z.numel() * 64 / 40
