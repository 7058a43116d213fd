"""Configurations: presets, checks, JSON."""

import dataclasses
import json

import pytest

from farmer_ref import PRESETS, Guidance, InputError, ModelConfig, TrainConfig
from farmer_ref.parameters import PAPER, count
from farmer_ref.support.settings import parse_json

NAMES = [
    "tiny", "digits", "digits-noise", "photographs", "cifar10-crops", "mnist", "fashion-mnist", "cifar10", "imagenet64",
    "farmer-1.1b-p16", "farmer-1.1b-p8", "farmer-1.9b-p16", "farmer-1.9b-p8",
]  # fmt: skip


def test_all_presets_are_there():
    assert list(PRESETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_preset_builds_and_survives_json(name):
    preset = PRESETS[name]
    assert preset.preset == name
    assert preset.model.flow_blocks * preset.model.max_log_scale <= 80
    assert count(preset.model)["total"] > 0  # on the meta device
    assert parse_json(TrainConfig, json.dumps(dataclasses.asdict(preset))) == preset


def test_the_trained_presets_split():
    for name in ("digits", "digits-noise"):
        assert PRESETS[name].model.informative < PRESETS[name].model.token_channels
    assert PRESETS["digits-noise"].model.dequantisation == "gaussian"


def test_parameter_counts_of_the_paper():
    """Table 1 within 2%: AR-1.1B at patch 16 and AF-1.1B at patch 8."""
    assert count(PRESETS["farmer-1.1b-p16"].model)["prior"] == pytest.approx(295e6, rel=0.02)
    assert count(PRESETS["farmer-1.1b-p8"].model)["flow"] == pytest.approx(828e6, rel=0.02)
    assert count(PRESETS["farmer-1.9b-p8"].model)["flow"] == pytest.approx(1.4e9, rel=0.02)
    assert set(PAPER) == {name for name in NAMES if name.startswith("farmer")}


def test_paper_presets_have_the_paper_s_numbers():
    for name in PAPER:
        model, patch = PRESETS[name].model, int(name.split("-p")[1])
        assert (model.image_size, model.patch_size, model.condition_repeats) == (256, patch, 64)
        assert (model.components, model.redundant_components) == (64, 200)
        assert model.informative == {16: 128, 8: 32}[patch]
        assert (model.noise_start, model.noise_final) == (0.1, 0.005)


def test_paper_presets_have_the_paper_s_guidance():
    """Table 6: T_pi, T_sigma, s_c, s_u, T_pi,v, T_sigma,v, T_s, w."""
    table = {
        "farmer-1.1b-p16": (1, 0.9, 5, 5, 0.2, 0.9, 1.1, 2.5),
        "farmer-1.1b-p8": (1, 1, 5, 5, 0.2, 0.9, 1.1, 2.0),
        "farmer-1.9b-p16": (1, 0.9, 5, 5, 0.2, 0.9, 1.1, 3.5),
        "farmer-1.9b-p8": (1, 1, 5, 5, 0.1, 1, 1.1, 1.5),
    }
    for name, row in table.items():
        given = PRESETS[name].guidance
        assert row == (
            given.weight_temperature,
            given.scale_temperature,
            given.candidates_conditional,
            given.candidates_unconditional,
            given.scoring_weight_temperature,
            given.scoring_scale_temperature,
            given.resampling_temperature,
            given.scale,
        )
        assert given.rule == "resampling"
    assert PRESETS["digits"].guidance == Guidance()


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("patch_size", 3, "a divisor of image_size"),
        ("patch_size", 8, "at least 4 patches"),
        ("informative", 4, "1 to 3"),
        ("informative", 0, "1 or more"),
        ("max_log_scale", 20.1, "at most 20"),
        ("max_log_scale", 0.0, "above 0"),
        ("levels", 257, "2 to 256"),
        ("flow_width", 100, "multiple of head_dim"),
        ("dropout", 1.0, "0 up to"),
        ("patch_basis", "wavelet", "pixel, pca, dct"),
        ("noise_final", 0.2, "at most noise_start"),
        ("components", 0, "1 or more"),
        ("num_classes", -1, "0 or more"),
    ],
)
def test_bad_model_fields_are_named(field, value, allowed):
    with pytest.raises(InputError) as raised:
        ModelConfig(**{field: value})
    message = str(raised.value)
    assert message.startswith(f"model.{field} is {value!r}; allowed: ")
    assert allowed in message
    assert "\n" not in message


def test_unknown_fields_are_named():
    with pytest.raises(InputError, match="^field is 'model.wings'; allowed: image_size, channels, levels, "):
        ModelConfig(wings=2)
    with pytest.raises(InputError, match="^field is 'wings'; allowed: out, resume, steps, "):
        TrainConfig(wings=2, model=ModelConfig())


def test_a_flow_that_sees_the_class_needs_classes():
    with pytest.raises(InputError, match="flow_sees_class is True"):
        ModelConfig(flow_sees_class=True, num_classes=0)
