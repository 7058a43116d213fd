"""Presets: all there, buildable, and with the paper's numbers."""

import dataclasses
import json

import pytest

from farmer_ref import PRESETS, Guidance, TrainConfig
from farmer_ref.parameters import PAPER, count
from farmer_ref.support.settings import parse_json


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds_and_survives_json(name):
    preset = PRESETS[name]
    assert preset.preset == name
    assert preset.model.flow_blocks * preset.model.max_log_scale <= 80
    assert count(preset.model)["total"] > 0  # on the meta device
    assert parse_json(TrainConfig, json.dumps(dataclasses.asdict(preset))) == preset


def test_parameter_counts_of_the_paper():
    """Table 1 within 2%: AR-1.1B at patch 16 and AF-1.1B at patch 8."""
    assert count(PRESETS["farmer-1.1b-p16"].model)["prior"] == pytest.approx(295e6, rel=0.02)
    assert count(PRESETS["farmer-1.1b-p8"].model)["flow"] == pytest.approx(828e6, rel=0.02)
    assert count(PRESETS["farmer-1.9b-p8"].model)["flow"] == pytest.approx(1.4e9, rel=0.02)
    assert set(PAPER) == {name for name in PRESETS if name.startswith("farmer")}


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
