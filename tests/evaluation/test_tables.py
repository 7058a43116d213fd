"""The paper's tables: every row is a model, every claim is about rows."""

import dataclasses

import pytest

from farmer_ref import PRESETS
from farmer_ref.evaluation.tables import bases, tables
from farmer_ref.model.prior import _channel_order


@pytest.mark.parametrize("name", ["digits", "photographs", "mnist", "cifar10", "cifar10-crops"])
def test_every_row_is_a_model_and_every_claim_is_about_rows(name):
    preset = PRESETS[name]
    everything = {**tables(preset), "basis": bases(preset, 600)}
    assert set(everything) == {"table3", "table4", "table5", "figure6a", "figure6b", "figure7", "figure8", "basis"}
    for table in everything.values():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        for row in table.rows:
            dataclasses.replace(preset.model, **row.model)  # raises where it is none
        for claim in table.claims:
            assert {*claim.firsts, claim.second} <= set(names) and claim.second not in claim.firsts
        assert len(set(table.claims)) == len(table.claims)


def test_table_3_changes_one_thing_at_a_time():
    rows = {row.name: row for row in tables(PRESETS["digits"])["table3"].rows}
    models = {name: dataclasses.replace(PRESETS["digits"].model, **row.model) for name, row in rows.items()}
    fields = [field.name for field in dataclasses.fields(PRESETS["digits"].model)]

    def differ(a, b):
        return {name for name in fields if getattr(models[a], name) != getattr(models[b], name)}

    assert differ("no split", "split") == {"informative"}
    assert differ("split", "split, condition repeated") == {"condition_repeats"}
    assert differ("split", "split, final permutation") == {"final_permutation"}
    assert differ("split, condition repeated", "split, both") == {"final_permutation"}
    assert differ("split, both", "both, resampling") == set()
    assert differ("both, resampling", "both, resampling, Z_R ~ N(0, I)") == {"redundant_prior"}


@pytest.mark.parametrize("name", ["digits", "photographs", "mnist", "cifar10", "cifar10-crops"])
def test_channels_spread_over_the_token_are_others_than_the_first(name):
    rows = {row.name: row.model for row in tables(PRESETS[name])["figure6b"].rows}
    (spread,) = (model for model in rows.values() if "informative_channels" in model)
    size, channels = spread["informative"], PRESETS[name].model.token_channels
    chosen = [set(_channel_order(channels, size, rule)[:size].tolist()) for rule in ("first", "interleaved")]
    assert chosen[0] != chosen[1] and {"informative": size} in rows.values()
