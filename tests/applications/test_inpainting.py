"""Inpainting against a conditional that is known by integration."""

import math

import pytest
import torch
from conftest import randomise_zeros, small_model

from farmer_ref import Farmer, InputError, ModelConfig
from farmer_ref.applications import inpainting
from farmer_ref.applications.anomalies import AnomalyScorer
from farmer_ref.applications.classification import class_log_probs
from farmer_ref.applications.inpainting import Conditional, Particles, hamiltonian_move, inpaint, largest_power
from farmer_ref.data.sets import batches, load_split

TINY = {
    "image_size": 2,
    "channels": 1,
    "levels": 3,
    "patch_size": 1,
    "num_classes": 2,
    "flow_blocks": 2,
    "flow_layers": 1,
    "flow_width": 8,
    "prior_layers": 1,
    "prior_width": 8,
    "head_dim": 8,
    "informative": None,
    "components": 2,
    "condition_repeats": 1,
    "max_log_scale": 0.7,
}

KNOWN = torch.tensor([[[True, False], [False, True]]])

GIVEN = torch.tensor([[[[2, 0], [0, 1]]]], dtype=torch.uint8)

COPIES, SAMPLES, PARTICLES = 24, 20, 3


@pytest.fixture(scope="module")
def tiny():
    """A density of four pixels, in float64, no weight at zero."""
    torch.manual_seed(0)
    return randomise_zeros(Farmer(ModelConfig(**TINY)), std=0.25)


def midpoints(low, high, count):
    """Those of `count` equal intervals."""
    return low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.fixture(scope="module")
def exact(tiny):
    """Points (n,4) and their weights (n,) under the density of four pixels, two of which lie in their known cells.

    By the midpoint rule: 6 x 6 places in the cells, 44 x 44 of the missing pixels.
    """
    cells = [midpoints(2 * int(v) / 3 - 1, 2 * (int(v) + 1) / 3 - 1, 6) for v in GIVEN.flatten()[KNOWN.flatten()]]
    axis = midpoints(-1.6, 3.4, 44)
    points = torch.cartesian_prod(cells[0], axis, axis, cells[1])
    images, label = points.view(-1, 1, 2, 2), torch.ones(len(points), dtype=torch.long)
    with torch.no_grad():
        log_p = torch.cat(
            [tiny.log_prob(*part) for part in zip(images.split(20_000), label.split(20_000), strict=True)]
        )
    return points, torch.softmax(log_p, 0)


def drawn(tiny):
    """What `inpaint` draws (COPIES,SAMPLES,4), the continuous pixels; the copies are independent."""
    labels, given = torch.ones(COPIES, dtype=torch.long), GIVEN.expand(COPIES, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    done = inpaint(tiny, given, KNOWN, labels, samples=SAMPLES, particles=PARTICLES, moves=15, generator=generator)
    return done.images.flatten(2)


def worst_deviation(samples, points, weights):
    """The largest difference between samples (copies,n,4) and the exact distribution, in standard errors.

    Of the means and second moments of all pixels, and of the shares of each missing pixel that lie below five levels.
    """

    def statistics(x):
        second = torch.stack([x[..., i] * x[..., j] for i in range(4) for j in range(i + 1)], -1)
        below = torch.cat([(x[..., 1:3] < level).double() for level in (0.3, 0.6, 0.9, 1.2, 1.5)], -1)
        return torch.cat([x, second, below], -1)

    wanted = (weights[:, None] * statistics(points)).sum(0)
    copies = statistics(samples).mean(1)  # (copies, statistics)
    error = (copies.mean(0) - wanted).abs() / (copies.std(0) / math.sqrt(len(copies)))
    return float(error.nan_to_num(math.inf).max())


def test_inpainting_draws_from_the_conditional_that_integration_gives(tiny, exact):
    samples = drawn(tiny)
    assert worst_deviation(samples, *exact) < 5  # of 24 statistics
    known = samples[..., KNOWN.flatten()]
    assert (tiny.dequantiser.quantise(known) == GIVEN.flatten()[KNOWN.flatten()]).all()


def test_without_the_acceptance_rule_the_check_fails(tiny, exact, monkeypatch):
    monkeypatch.setattr(inpainting, "accepted", lambda log_ratio, generator: log_ratio.isfinite())
    assert worst_deviation(drawn(tiny), *exact) > 8


def test_without_the_jacobian_of_the_cells_the_check_fails(tiny, exact, monkeypatch):
    monkeypatch.setattr(inpainting.F, "logsigmoid", torch.zeros_like)
    assert worst_deviation(drawn(tiny), *exact) > 8


def test_small_leaps_keep_the_energy(tiny):
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(1, dtype=torch.long)
    library = torch.randn(1, 20, 1, 2, 2, dtype=torch.float64) * 0.5
    conditional = Conditional(
        tiny, GIVEN, KNOWN, labels, library=library, noise=torch.rand(1, 1, 2, 2, dtype=torch.float64)
    )
    here = Particles.at(conditional.start(500, generator), conditional)
    rates = []
    for size in (1.0, 0.1, 0.01):
        one = torch.ones(1, dtype=torch.float64)
        _, moved = hamiltonian_move(conditional, here, t=one, size=size * one, generator=generator)
        rates.append(float(moved.double().mean()))
    assert rates[0] < rates[2] and rates[2] > 0.99


@pytest.mark.parametrize("name", ["digits", "digits-noise"])
def test_known_pixels_come_back_as_they_were(name):
    model = Farmer.from_pretrained(name)
    values, labels = next(batches(load_split("digits", "test", model.config), 2, 2))
    known = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.7
    done = inpaint(model, values, known, labels, samples=3, particles=4, moves=2)
    assert done.values.shape == (2, 3, 1, 8, 8) and done.values.dtype == torch.uint8
    assert (done.values == values[:, None])[..., known].all()
    assert (model.dequantiser.quantise(done.images) == done.values).all()  # not only put back
    assert (done.values != values[:, None])[..., ~known].any()
    assert labels[0] != labels[1]
    with torch.no_grad():
        found = model.log_prob(done.images.flatten(0, 1), labels.repeat_interleave(3))
    assert torch.allclose(done.log_prob.flatten(), found, atol=1e-3)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 240)])
def test_what_are_no_grey_levels_is_refused(digits, wrong):
    """Images in [-1, 1], or bytes for a model of 17 levels: numbers, and all wrong."""
    known = torch.arange(64).view(1, 8, 8) < 32
    scores = (
        lambda: inpaint(digits, wrong, known),
        lambda: class_log_probs(digits, wrong),
        lambda: AnomalyScorer(digits, wrong, torch.zeros(1)),
    )
    for score in scores:
        with pytest.raises(InputError, match="values are torch.* allowed: whole grey levels from 0 to 16"):
            score()


def test_inpainting_refuses(digits):
    values = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    for known, message in ((torch.ones(1, 8, 8), "missing pixels is 0"), (torch.zeros(1, 8, 8), "known pixels is 0")):
        with pytest.raises(InputError, match=message):
            inpaint(digits, values, known.bool())
    with pytest.raises(InputError, match="samples is 0; allowed: 1 or more"):
        inpaint(digits, values, torch.rand(1, 8, 8) < 0.5, samples=0)


def test_largest_power_keeps_so_many_effective():
    log_ratio = torch.randn(3, 100, dtype=torch.float64) * torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)[:, None]
    power = largest_power(log_ratio, most=torch.ones(3, dtype=torch.float64), effective=90.0)
    assert power[0] == 1 > power[1] > power[2] > 0
    size = 1 / torch.softmax(power[1:, None] * log_ratio[1:], 1).square().sum(1)
    assert torch.allclose(size, torch.full_like(size, 90.0))


def test_resampling_keeps_the_weighted_mean():
    y = torch.arange(8.0)[None, :, None].repeat(2000, 1, 1)
    nothing = torch.zeros(2000, 8)
    log_weights = torch.linspace(-1, 1, 8).repeat(2000, 1)
    drawn = Particles(y, nothing, nothing, y, y).resampled(log_weights, torch.Generator().manual_seed(0)).y[..., 0]
    assert float(drawn.mean()) == pytest.approx(float((log_weights.softmax(1) * y[..., 0]).sum(1).mean()), abs=0.02)
    assert float(drawn[:, :2].mean()) == pytest.approx(float(drawn.mean()), abs=0.1)  # in random order


def test_inpainting_works_under_inference_mode():
    model = small_model()
    values = torch.zeros(1, 2, 6, 6, dtype=torch.long)
    known = torch.zeros(2, 6, 6, dtype=torch.bool)
    known[:, :3] = True
    options = {"samples": 1, "particles": 2, "moves": 1}
    expected = inpaint(model, values, known, torch.tensor([1]), **options).values
    with torch.inference_mode():
        found = inpaint(model, values.clone(), known.clone(), torch.tensor([1]), **options).values
    assert torch.equal(expected, found)


@pytest.mark.parametrize("pixels", ["linear", "histogram"])
def test_the_target_is_the_density_in_its_coordinates(pixels):
    """log p(x) plus the logarithm of how far x moves with each coordinate, by autograd."""
    torch.manual_seed(0)
    model = randomise_zeros(Farmer(ModelConfig(**TINY, pixels=pixels)), std=0.25).eval()
    library = torch.rand(2, 20, 1, 2, 2, dtype=torch.float64) * 2 - 1
    model.pixels.fit(model.dequantiser.quantise(library[0]))
    noise, labels = torch.rand(2, 1, 2, 2, dtype=torch.float64), torch.arange(2)
    conditional = Conditional(model, GIVEN.expand(2, -1, -1, -1), KNOWN, labels, library=library, noise=noise)
    y = conditional.start(5, torch.Generator().manual_seed(0)).requires_grad_()
    images = conditional.images(y)
    (moves,) = torch.autograd.grad(images.sum(), y)
    log_p = model.log_prob(images.flatten(0, 1), labels.repeat_interleave(5)).view(2, 5)
    found = conditional.log_densities(y)[0]
    constant = int(KNOWN.sum()) * math.log(conditional.cell)  # of the cells' width, which the target leaves out
    assert torch.allclose(found + constant, log_p + moves.log().sum(-1), rtol=1e-9)
