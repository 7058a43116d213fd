"""bits/dim and its parts, the classifier, the Fréchet distance."""

import math

import pytest
import scipy.linalg
import torch
from conftest import small_model

from farmer_ref import PRESETS, InputError, bits_per_dim
from farmer_ref.data.order import random_seed
from farmer_ref.data.sets import load_split
from farmer_ref.evaluation.metrics import (
    Moments,
    PixelClassifier,
    evaluate_likelihood,
    frechet_distance,
    sample_values,
    terms_over_draws,
)

DIGITS = PRESETS["digits"].model


def digits_model(**changes):
    return small_model(image_size=8, channels=1, num_classes=10, informative=3, **changes).float()


def test_bits_per_dim_bounds_and_draws():
    model = digits_model()
    data = load_split("digits", "validation", DIGITS)
    images, labels = data.values[:20], data.labels[:20]
    one = bits_per_dim(model, images, labels, draws=1)
    mean = bits_per_dim(model, images, labels, draws=16)
    tighter = bits_per_dim(model, images, labels, draws=16, importance_weighted=True)
    assert one.shape == (20,)
    assert (tighter < mean).all()  # Jensen
    total = terms_over_draws(model, images, labels, draws=16, seed=0).total.double()  # (16, 20)
    log_mean = total[0] + (total - total[0]).exp().mean(0).log()
    for found, log_p in ((mean, total.mean(0)), (tighter, log_mean)):
        assert torch.allclose(found.double(), -log_p / (64 * math.log(2)) + math.log2(17 / 2), atol=1e-5)
    assert torch.equal(mean, bits_per_dim(model, images, labels, draws=16))  # seeded
    seeds = [random_seed(0, "dequantise", number, 0) for number in range(20)]
    noise = [torch.rand((1, 8, 8), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    with torch.no_grad():
        x = 2 * (images + torch.stack(noise)) / 17 - 1
        by_hand = -model.log_prob(x, labels) / (64 * math.log(2)) + math.log2(17 / 2)
    assert torch.allclose(one, by_hand, atol=1e-5)


def test_split_likelihood_is_the_mean_of_its_images_and_parts_add_up():
    model = digits_model()
    data = load_split("digits", "validation", DIGITS)
    figures = evaluate_likelihood(model, data, draws=2, batch_size=100, importance_weighted=True)
    assert figures.images == 100
    alone = bits_per_dim(model, data.values, data.labels, draws=2)
    assert figures.bits_per_dim == pytest.approx(float(alone.mean()))
    assert figures.standard_error == pytest.approx(float(alone.std()) / 10)
    for name, term in terms_over_draws(model, data.values, data.labels, draws=2, seed=0)._asdict().items():
        assert getattr(figures, f"{name}_nats_per_dim") == pytest.approx(-float(term.mean()) / 64, abs=1e-6)
    parts = figures.informative_nats_per_dim + figures.redundant_nats_per_dim + figures.logdet_nats_per_dim
    assert parts == pytest.approx(figures.nats_per_dim, abs=1e-6)
    assert figures.bits_per_dim == pytest.approx(figures.nats_per_dim / math.log(2) + math.log2(8.5), abs=1e-6)
    assert figures.importance_weighted_bits_per_dim < figures.bits_per_dim
    assert evaluate_likelihood(model, data, draws=1, limit=7).images == 7


def test_gaussian_models_have_no_bits_per_dim():
    model = digits_model(dequantisation="gaussian")
    data = load_split("digits", "validation", DIGITS)
    with pytest.raises(InputError, match="dequantisation is 'gaussian'"):
        bits_per_dim(model, data.values, data.labels)
    assert evaluate_likelihood(model, data, draws=1).bits_per_dim is None
    with pytest.raises(InputError, match="dequantisation is 'gaussian'"):
        evaluate_likelihood(model, data, importance_weighted=True)


def test_the_classifier_knows_real_digits_and_not_noise():
    classifier = PixelClassifier(load_split("digits", "train", DIGITS))
    test = load_split("digits", "test", DIGITS)
    assert classifier.accuracy(test.values, test.labels) > 0.98
    noise = torch.randint(0, 17, test.values.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert classifier.accuracy(noise, test.labels) < 0.3


def test_sampling_in_batches():
    model = digits_model()
    values = sample_values(model, torch.arange(7), seed=0, batch_size=3)
    assert values.shape == (7, 1, 8, 8)
    assert values.dtype == torch.uint8
    assert values.max() <= 16


def test_frechet_distance_against_scipy():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    b = torch.randn(400, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    root = scipy.linalg.sqrtm((torch.cov(a.T) @ torch.cov(b.T)).numpy()).real
    exact = (a.mean(0) - b.mean(0)).square().sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * root.trace()
    assert frechet_distance(a, b) == pytest.approx(float(exact), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 1) == pytest.approx(6)


def test_moments_of_parts_are_those_of_the_whole():
    """Far from zero, too, where a sum of squares would lose all digits."""
    features = torch.randn(1001, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6
    parts = features.split([1, 400, 7, 593])
    added = Moments.of(parts[0]) + (Moments.of(parts[1]) + Moments.of(parts[2])) + Moments.of(parts[3])
    assert added.count == 1001
    torch.testing.assert_close(added.mean, features.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(added.covariance, torch.cov(features.T), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("images", "draws", "message"),
    [
        (torch.zeros(1, 1, 8, 8), 1, "images are torch.float32 .* allowed: whole grey levels"),
        (
            torch.full((1, 1, 8, 8), 17, dtype=torch.uint8),
            1,
            "images are torch.uint8 from 17 to 17; allowed: whole grey levels from 0 to 16",
        ),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 0, "draws is 0; allowed: 1 or more"),
    ],
)
def test_bits_per_dim_refuses_what_would_be_silently_wrong(images, draws, message):
    with pytest.raises(InputError, match=message):
        bits_per_dim(digits_model(levels=17), images, draws=draws)


@pytest.mark.parametrize("dequantisation", ["uniform", "gaussian"])
def test_what_is_drawn_for_an_image_depends_on_no_batch_and_no_limit(dequantisation):
    model = digits_model(dequantisation=dequantisation).double()
    data = load_split("digits", "validation", DIGITS)
    whole = terms_over_draws(model, data.values, data.labels, draws=2, seed=3).total  # (2, 100)
    wanted = -float(whole.mean()) / 64
    for batch_size in (1, 7, 100):
        found = evaluate_likelihood(model, data, draws=2, batch_size=batch_size, seed=3)
        assert found.nats_per_dim == pytest.approx(wanted, abs=1e-12)
    few = evaluate_likelihood(model, data, draws=2, batch_size=3, limit=7, seed=3)
    numbers = [i * 100 // 7 for i in range(7)]
    assert few.nats_per_dim == pytest.approx(-float(whole[:, numbers].mean()) / 64, abs=1e-12)
    one = evaluate_likelihood(model, data, draws=1, seed=3)  # the first of two draws is the only one of one
    assert one.nats_per_dim == pytest.approx(-float(whole[0].mean()) / 64, abs=1e-12)
    assert (whole[0] != whole[1]).all()  # another draw, another density
    same = terms_over_draws(model, data.values[:1].repeat(2, 1, 1, 1), None, draws=1, seed=3).total
    assert same[0, 0] != same[0, 1]  # another number, too
    assert not torch.equal(whole, terms_over_draws(model, data.values, data.labels, draws=2, seed=4).total)
