"""The whole model: exact likelihood of images, the two directions, weights on disk."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import images_for, jacobian, randomise_zeros, small_model

from farmer_ref import Farmer, Guidance, ModelConfig, OneStepStudent, bits_per_dim
from farmer_ref.model.checks import checked_labels
from farmer_ref.support.errors import InputError


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"patch_basis": "pca"},
        {"patch_basis": "dct", "image_size": 8, "patch_size": 4, "informative": 20},
        {"channel_mixing": "learned"},
        {"informative": None},
    ],
)
def test_encode_decode_and_logdet(variant):
    model = small_model(**variant)
    model.patchify.fit(images_for(model, 50))
    x = images_for(model)
    z, logdet = model.encode(x)
    assert (model.decode(z) - x).abs().max() <= 1e-9
    exact = torch.linalg.slogdet(jacobian(lambda image: model.encode(image)[0], x[:1])).logabsdet
    assert abs(logdet[0] - exact) <= 1e-8


def test_terms_add_up():
    model = small_model()
    labels = torch.tensor([0, 1])
    terms = model.likelihood_terms(images_for(model), labels)
    z, logdet = model.encode(images_for(model), labels)
    assert torch.equal(terms.logdet, logdet)
    assert torch.equal(terms.total, model.log_prob(images_for(model), labels))
    assert torch.allclose(terms.total, model.prior.log_prob(z, labels) + logdet, atol=1e-9)
    assert terms.total.shape == (2,)


@pytest.mark.parametrize(
    ("flow", "channels", "informative"), [("autoregressive", 1, None), ("autoregressive", 2, 1), ("coupling", 2, 1)]
)
def test_a_tiny_model_integrates_to_one(flow, channels, informative):
    """The density of a 2x2 image over its pixels, by quasi-random importance sampling: E_q[p / q] = 1.

    Without and with a split, of both flows. A lost constant, or a wrong sign of the log-determinant, is a factor.
    """
    model = small_model(
        image_size=2, channels=channels, patch_size=1, flow=flow, flow_blocks=2, informative=informative, components=2,
        flow_width=8, prior_width=8, prior_layers=1,
    )  # fmt: skip
    for block in model.flow.blocks:
        network = block.network if flow == "coupling" else block
        network.project_out.weight.data *= 0.3  # light tails, which importance sampling needs
    uniform = torch.quasirandom.SobolEngine(4 * channels, scramble=True, seed=0).draw(2**16, dtype=torch.float64)
    proposal = torch.distributions.StudentT(5.0, scale=1.5)  # heavier tails than the model's
    x = torch.from_numpy(scipy.stats.t(5, scale=1.5).ppf(uniform))
    with torch.no_grad():
        images = x.view(-1, channels, 2, 2)
        weights = torch.cat([model(part).total for part in images.split(2**14)]) - proposal.log_prob(x).sum(1)
        assert model(images[:50]).logdet.abs().mean() > 1e-2  # the flow does something
    assert float(weights.exp().mean()) == pytest.approx(1, abs=0.05)


def test_samples_follow_the_seed_and_are_finite():
    model = small_model()
    labels = torch.tensor([0, 1, 2, -1])
    first = model.sample(labels, generator=torch.Generator().manual_seed(0))
    again = model.sample(labels, generator=torch.Generator().manual_seed(0))
    other = model.sample(labels, generator=torch.Generator().manual_seed(1))
    assert first.shape == (4, 2, 6, 6)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.abs().max() <= 1


def test_the_two_exact_inverses_draw_the_same_images():
    model = small_model()
    labels = torch.tensor([0, 1, 2, -1])
    a, b = (
        model.sample(labels, Guidance(scale=1.0), method=method, generator=torch.Generator().manual_seed(0))
        for method in ("sequential", "jacobi")
    )
    assert torch.allclose(a, b, atol=1e-4)
    with pytest.raises(InputError, match="method is 'magic'; allowed: sequential, jacobi"):
        model.sample(labels, method="magic")


def test_guidance_needs_labels():
    model = small_model(num_classes=0)
    assert model.sample(torch.tensor([-1])).isfinite().all()
    with pytest.raises(InputError, match=r"guidance scale is 1.5; allowed: 0 in a model without labels"):
        model.sample(torch.tensor([-1]), Guidance(scale=1.5))


def test_denoising_is_exact_for_gaussian_data():
    """E[clean | x] = x + sigma^2 (m - x) / (s^2 + sigma^2) for pixels N(m, s^2) and noise of sigma (Tweedie)."""
    model = small_model(dequantisation="gaussian", noise_final=0.1, informative=None, components=1)
    for block in model.flow.blocks:
        torch.nn.init.zeros_(block.project_out.weight)
        torch.nn.init.zeros_(block.project_out.bias)  # the identity
    mean, std = 0.3, math.hypot(0.5, 0.1)
    torch.nn.init.zeros_(model.prior.token_head.weight)
    model.prior.token_head.bias.data[1:9], model.prior.token_head.bias.data[9:] = mean, math.log(std)
    noisy = images_for(model)
    expected = noisy + 0.1**2 * (mean - noisy) / std**2
    assert torch.allclose(model.denoise(noisy, torch.tensor([0, -1])), expected, atol=1e-3)  # sigma_k has a floor
    assert (expected - noisy).abs().max() > 0.02
    assert not model.denoise(noisy).requires_grad
    plain, denoised = (
        model.sample(torch.tensor([0]), denoise=flag, generator=torch.Generator().manual_seed(0)) for flag in (0, 1)
    )
    assert 0 < (plain - denoised).abs().max() < 0.2


def test_denoising_needs_gaussian_noise():
    for ask in (lambda m: m.denoise(images_for(m)), lambda m: m.sample(torch.tensor([0]), denoise=True)):
        with pytest.raises(InputError, match="denoise is True with uniform dequantisation"):
            ask(small_model())


@pytest.mark.parametrize("given", [np.zeros((1, 2, 6, 6)), torch.zeros(1, 2, 6, 6, dtype=torch.uint8)])
def test_denoising_checks_its_images(given):
    with pytest.raises(InputError, match=r"images are .*; allowed: .*numbers in \[-1, 1\]"):
        small_model(dequantisation="gaussian").denoise(given)


@pytest.mark.parametrize("label", [-2, 3])
def test_label_out_of_range_is_named(label):
    model = small_model()
    with pytest.raises(InputError, match=rf"label is {label}; allowed: 0 to 2, or -1"):
        model.log_prob(images_for(model), torch.tensor([0, label]))


def test_a_model_without_labels_says_so():
    model = small_model(num_classes=0)
    assert torch.equal(model.log_prob(images_for(model), [-1, -1]), model.log_prob(images_for(model)))
    with pytest.raises(InputError, match="label is 0; allowed: -1, for no label, in a model without labels"):
        model.log_prob(images_for(model), torch.tensor([-1, 0]))


def test_image_of_the_wrong_size_is_named():
    model = small_model()
    with pytest.raises(InputError, match=r"images have shape \(2, 2, 8, 6\); allowed: \(batch, 2, 6, 6\)"):
        model.log_prob(torch.zeros(2, 2, 8, 6))


def test_images_that_are_not_dequantised_are_named():
    model = small_model()
    for ask in (model.log_prob, model.encode):
        with pytest.raises(InputError, match="images are torch.uint8; allowed: .* as model.dequantiser gives"):
            ask(torch.zeros(2, 2, 6, 6, dtype=torch.uint8))


@pytest.mark.parametrize("flow", ["autoregressive", "coupling"])
def test_latents_of_the_wrong_shape_are_named(flow):
    model = small_model(flow=flow)
    for inverse in (model.decode, model.flow.inverse, lambda z: model.decode(z, student=lambda z, labels: z)):
        with pytest.raises(InputError, match=r"z has shape \(1, 8, 8\); allowed: \(batch, 9, 8\)"):
            inverse(torch.zeros(1, 8, 8, dtype=torch.float64))


def test_a_student_goes_with_no_other_method():
    model = small_model()
    for ask, what in ((model.decode, torch.zeros(1, 9, 8, dtype=torch.float64)), (model.sample, torch.tensor([0]))):
        with pytest.raises(
            InputError, match="method is 'jacobi', with a student; allowed: either a student or a method"
        ):
            ask(what, student=lambda z, labels: z, method="jacobi")


def test_modules_pick_no_dtype_and_no_device():
    with torch.device("meta"):
        model = Farmer(ModelConfig())
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("basis", ["pixel", "pca", "dct"])
@pytest.mark.parametrize("mixing", ["none", "learned"])
def test_bfloat16_autocast_keeps_densities_in_float32(basis, mixing):
    model = small_model(patch_basis=basis, channel_mixing=mixing).float()
    model.patchify.fit(images_for(model, 50))
    x = images_for(model).float()
    exact = model.log_prob(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model.likelihood_terms(x)
        samples = model.sample(torch.tensor([0, 1]), generator=torch.Generator().manual_seed(0))
        z, _ = model.encode(x)
        assert (model.decode(z) - x).abs().max() < 0.2  # the layers round differently one token at a time
    assert all(term.dtype == torch.float32 for term in terms)
    assert samples.dtype == torch.float32
    difference = (terms.total - exact).abs()
    assert (difference > 0).all()  # the layers did run in bfloat16
    assert (difference / model.config.dimensions < 0.05).all()


def test_sampling_and_scoring_switch_dropout_off_for_a_while():
    model = small_model(dropout=0.5, levels=17).float().train()
    values = torch.zeros(2, 2, 6, 6, dtype=torch.uint8)
    assert torch.equal(bits_per_dim(model, values), bits_per_dim(model, values))
    a, b = (model.sample(torch.tensor([0]), generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(a, b)
    z, _ = model.eval().encode(images_for(model).float())
    model.train()
    assert torch.equal(model.decode(z, method="jacobi"), model.decode(z, method="jacobi"))
    assert model.training
    model.flow.eval()  # as where the prior alone is trained
    model.sample(torch.tensor([0]))
    assert model.training and model.prior.training and not any(module.training for module in model.flow.modules())


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ([0, 1, 5], "3 labels; allowed: 2"),
        (torch.eye(3)[:2], "argmax"),
        (torch.eye(3, dtype=torch.long)[:2], "argmax"),
        (torch.tensor([True, False]), "torch.bool"),
        (torch.tensor([0.0, 1.0]), "torch.float32"),
        (["cat", "dog"], "whole numbers"),
        (1, "whole numbers"),
        ([0, 7], "label is 7"),
        ([[0], [1, 2]], "whole numbers"),
    ],
)
def test_labels_that_may_mean_something_else_are_one_line(labels, part):
    model = small_model()
    for use in (model.log_prob, model.encode):
        with pytest.raises(InputError, match=part):
            use(images_for(model), labels)


def test_labels_whose_meaning_is_certain_are_accepted():
    model = small_model()
    x, wanted = images_for(model), torch.tensor([0, 2])
    for labels in ([0, 2], (0, 2), wanted.to(torch.uint8), wanted.int(), wanted.numpy()):
        assert torch.equal(model.log_prob(x, labels), model.log_prob(x, wanted))
    assert model.sample([0, 1]).shape == x.shape
    assert model.log_prob(x[:0], []).shape == (0,)
    values = model.dequantiser.quantise(x)
    assert torch.equal(bits_per_dim(model, values, [0, 2]), bits_per_dim(model, values, wanted))
    there = torch.device("meta")  # in place of a GPU: the labels go where the model is
    assert checked_labels(wanted[:0], 0, classes=3, device=there).device == there


@pytest.mark.parametrize("method", ["sequential", "jacobi"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_no_labels_give_no_images(method, scale):
    assert small_model().sample([], Guidance(scale=scale), method=method).shape == (0, 2, 6, 6)


def test_what_is_no_tensor_of_images_and_no_label_at_all_is_one_line():
    model = small_model()
    with pytest.raises(InputError, match="images are a ndarray"):
        model.log_prob(images_for(model).numpy())
    with pytest.raises(InputError, match="labels are None; allowed: .* -1 for any class"):
        model.sample(None)


def test_grey_levels_given_as_images_are_one_line():
    model = small_model()
    x = images_for(model)
    for given in (x.abs().mul(255).round(), (x + 1) * 127.5, x * torch.nan):
        with pytest.raises(InputError, match="images (reach|are not finite)"):
            model.log_prob(given)
    small = torch.ones(1, 2, 6, 6, dtype=torch.long)
    for given in (-small, small.bool(), small * 17):
        with pytest.raises(InputError, match="images are .* allowed: whole grey levels from 0 to 16"):
            bits_per_dim(model, given)
    assert bits_per_dim(model, small[:0]).shape == (0,)


def test_denoising_works_in_chunks_and_under_inference_mode(monkeypatch):
    noisy = small_model(dequantisation="gaussian")
    monkeypatch.setattr("farmer_ref.model.farmer.DENOISING_BYTES", 9 * noisy.config.gradient_bytes)
    x, labels = images_for(noisy, 40), torch.arange(40) % 3
    outside = noisy.denoise(x, labels)
    alone = torch.cat([noisy.denoise(x[k : k + 1], labels[k : k + 1]) for k in range(40)])
    assert (outside - alone).abs().max() < 1e-12  # in chunks, as one by one
    with torch.inference_mode():
        inside = noisy.denoise(x.clone(), labels.clone())
    assert torch.equal(outside, inside)


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(scale=1.0)])
@pytest.mark.parametrize("informative", [2, None])
def test_what_a_model_draws_and_decodes_can_be_learnt_from(informative, guidance):
    """Loops over tokens run in inference mode, whose tensors are no use to autograd: none may get out."""
    model, labels = small_model(informative=informative), torch.tensor([0, 1])
    z, report = model.prior.sample_with_report(labels, guidance)
    images = model.sample(labels, guidance)
    for tensor in (z, model.flow.inverse(z), model.decode(z, labels), images, *(x for x in report if x is not None)):
        assert not tensor.is_inference()
    model(images, labels).total.mean().backward()


def test_a_model_loaded_under_inference_mode_can_be_trained():
    with torch.inference_mode():
        model = Farmer.from_pretrained("digits")
    model.log_prob(torch.zeros(1, 1, 8, 8)).sum().backward()
    assert next(model.parameters()).grad is not None


@pytest.mark.parametrize("flow", ["autoregressive", "coupling"])
def test_a_flow_that_sees_the_class_sees_it_in_every_direction(flow):
    model, labels = small_model(flow=flow, flow_sees_class=True), torch.tensor([0, 2])
    x = images_for(model)
    z, logdet = model.encode(x, labels)
    assert (z - model.encode(x)[0]).abs().max() > 1e-4
    assert torch.equal(model.likelihood_terms(x, labels).logdet, logdet)
    assert torch.allclose(model.log_prob(x, labels), model.prior.log_prob(z, labels) + logdet, atol=1e-9)
    assert (model.decode(z, labels) - x).abs().max() < 1e-9 < (model.decode(z) - x).abs().max()
    drawn, z = (draw(labels, generator=torch.Generator().manual_seed(0)) for draw in (model.sample, model.prior.sample))
    assert torch.equal(drawn, model.decode(z, labels).clamp(-1, 1))
    if flow == "autoregressive":
        parallel = model.decode(z, labels, method="jacobi")
        assert (parallel - model.decode(z, labels)).abs().max() < 1e-3 < (parallel - model.decode(z)).abs().max()
        student = randomise_zeros(OneStepStudent.from_teacher(model.flow, form="inverse"))
        guess = model.decode(z, labels, student=student)
        assert torch.equal(guess, model.to_images(student(z, labels)))
        assert (guess - model.decode(z, student=student)).abs().max() > 1e-4
