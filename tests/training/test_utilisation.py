"""What a step does, counted, against what is known of it in closed form."""

import dataclasses

import pytest

from farmer_ref import PRESETS
from farmer_ref.parameters import guided_cache_bytes, utilisation
from farmer_ref.training.costs import training_flops
from farmer_ref.training.utilisation import RATES, _counted, reachable_utilisation, work_of_an_image

DEEP = dataclasses.replace(
    PRESETS["digits-noise"].model,
    flow_blocks=3,
    flow_layers=3,
    prior_layers=4,
    patch_basis="dct",
    channel_mixing="learned",
)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_count_of_a_shallow_model_is_that_of_a_deep_one(precision):
    found = work_of_an_image(DEEP, precision=precision, compiled=False)
    one, two = (_counted(DEEP, images, precision) for images in (3, 4))
    wanted = {kind: two[kind] - one[kind] for kind in two if kind != "fused"}
    assert found.pop("memory") == pytest.approx(wanted.pop("memory"), rel=0.02)  # the first block's input is an image
    assert dict(found) == wanted


def test_products_counted_are_the_model_s():
    work = work_of_an_image(PRESETS["farmer-1.1b-p16"].model, precision="bfloat16", compiled=False)
    attention = 2 * work["attention"] * 3 / 3.5  # nothing masked; and backward twice, not two and a half times
    products = work["bfloat16"] + work["tf32"] + attention
    assert products == pytest.approx(training_flops(PRESETS["farmer-1.1b-p16"].model), rel=0.02)
    assert work["float32"] == 0  # of a patch-16 model without basis and mixing, nothing but the density is exact
    assert 0.05 < work["tf32"] / products < 0.08


def test_products_in_strict_float32_would_cost_a_quarter_of_the_peak(monkeypatch):
    """What TF32 for projections and heads is worth, by the count."""
    now = utilisation("farmer-1.1b-p16")
    monkeypatch.setattr("farmer_ref.training.utilisation.RATES", {**RATES, "tf32": RATES["float32"]})
    config = PRESETS["farmer-1.1b-p16"].model
    before = reachable_utilisation(config, parameters=1_100_000_000, images=32)
    assert before < 0.8 * now < 0.8


def test_compiled_layers_move_fewer_bytes():
    for name in ("imagenet64", "farmer-1.9b-p8"):
        assert 0.2 < utilisation(name, compiled=False) < utilisation(name) < 0.7


def test_the_cache_of_guided_samples():
    config = PRESETS["digits"].model
    rows, positions = 200, 17
    assert guided_cache_bytes(config, 100) == rows * positions * 4 * 2 * 64 * 4  # layers, keys and values, width
