"""Models of every precision: weights as they come, images and densities in float32 at least."""

import copy

import pytest
import torch
from conftest import logdet_error, mild_flow, round_trip_error, small_model, some_tokens

from farmer_ref import Farmer, Guidance, OneStepStudent, bits_per_dim
from farmer_ref.applications import inpainting
from farmer_ref.applications.anomalies import AnomalyScorer
from farmer_ref.applications.classification import class_log_probs
from farmer_ref.applications.editing import change_class, change_details, interpolate
from farmer_ref.data.sets import load_split
from farmer_ref.evaluation.metrics import evaluate_likelihood
from farmer_ref.model.tokens import Patchify

DTYPES = (torch.float64, torch.float16, torch.bfloat16)
OFF = {torch.float64: 1e-6, torch.float16: 0.005, torch.bfloat16: 0.02}  # bits/dim of one image


@pytest.fixture(scope="module")
def digits():
    model = Farmer.from_pretrained("digits")
    data = load_split("digits", "test", model.config)
    return model, data


def cast(module, dtype):
    return copy.deepcopy(module).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_of_any_precision_scores_images(digits, dtype):
    model, data = digits
    values, labels = data.values[:20], data.labels[:20]
    other = cast(model, dtype)
    wanted, found = (bits_per_dim(each, values, labels, draws=1) for each in (model, other))
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.allclose(found.float(), wanted, atol=OFF[dtype])
    assert evaluate_likelihood(other, data, draws=1, limit=20).bits_per_dim == pytest.approx(
        evaluate_likelihood(model, data, draws=1, limit=20).bits_per_dim, abs=OFF[dtype]
    )
    ours, theirs = (class_log_probs(each, values, draws=1) for each in (other, model))
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    scores = AnomalyScorer(other, values, labels, draws=1).scores(values[:3])
    assert all(score.isfinite().all() for score in scores.values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_of_any_precision_draws_and_edits_images(digits, dtype, monkeypatch):
    monkeypatch.setattr(inpainting, "LIBRARY", 4)
    model, data = cast(digits[0], dtype), digits[1]
    wanted, generator = torch.promote_types(dtype, torch.float32), torch.Generator().manual_seed(0)
    labels = data.labels[:2]
    images = model.dequantiser(data.values[:2], torch.tensor(0.5))  # float32, whatever the model's dtype
    student = OneStepStudent.from_pretrained("digits", model.flow)
    for how in ({}, {"guidance": Guidance(scale=1.0)}, {"method": "jacobi"}, {"student": student}):
        drawn = model.sample(labels, generator=generator, **how)
        assert drawn.dtype == wanted and drawn.isfinite().all()
    walks = [interpolate(model, images[:1], images[1:], steps=3, latent=latent) for latent in (True, False)]
    edited = change_class(model, images, labels, labels.flip(0)), change_details(model, images, labels)
    assert all(found.dtype == wanted and found.isfinite().all() for found in (*walks, *edited))
    known = torch.arange(64).view(1, 8, 8) < 60
    done = inpainting.inpaint(model, data.values[:1], known, labels[:1], samples=1, particles=2, moves=1)
    assert done.log_prob.isfinite().all() and (done.values[:, 0] == data.values[:1])[..., known].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"redundant_prior": "normal"}, {"flow": "coupling"}])
def test_densities_of_half_precision_are_in_float32(dtype, changes):
    model = small_model(channel_mixing="learned", patch_basis="dct", num_classes=0, **changes)
    images = torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted, terms = model.likelihood_terms(images), cast(model, dtype).likelihood_terms(images.to(dtype))
    assert {term.dtype for term in terms} == {torch.float32}
    assert torch.allclose(terms.total.double(), wanted.total, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_steps_of_fixed_shape_do_half_precision_too(dtype, fixed_steps):
    flow = mild_flow(dtype, count=5)
    z, _ = flow(some_tokens().float())
    growing = flow.inverse(z)
    fixed_steps()
    assert torch.allclose(flow.inverse(z), growing, atol=5e-3)
    drawn = small_model().to(dtype).sample(torch.tensor([0, -1]), generator=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32 and drawn.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_flow_of_half_precision_is_a_flow(dtype):
    """Its log-determinant is that of its own Jacobian in float32, and its mixing and basis can be undone there."""
    flow = mild_flow(dtype, count=5, blocks=1, channel_mixing=True)
    x = some_tokens(batch=1).float()
    assert logdet_error(flow, x) < 1e-4
    mixing = flow.blocks[0].mixing
    assert (mixing.inverse(mixing(x)[0]) - x).abs().max() < 1e-5
    assert round_trip_error(flow, x) < 0.05  # a position alone and all at once are rounded differently
    patchify = Patchify(8, 3, patch_size=4, basis="pca")
    patchify.fit(torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert (patchify.to(dtype).inverse(patchify(images)) - images).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_student_goes_with_its_teacher_in_any_precision_and_with_no_other(digits, dtype):
    flow = digits[0].flow
    student = OneStepStudent.from_pretrained("digits", flow)
    for theirs in (flow, cast(flow, dtype)):
        assert student.taught_by(theirs) and cast(student, dtype).taught_by(theirs)
    later = copy.deepcopy(flow)  # trained on, a little
    generator = torch.Generator().manual_seed(0)
    for parameter in later.parameters():
        parameter.data += 5e-3 * torch.randn(parameter.shape, generator=generator)
    for theirs in (later, cast(later, dtype)):
        assert not student.taught_by(theirs) and not cast(student, dtype).taught_by(theirs)
