"""The paper's tables at small scale: what is compared, what is kept, how claims are judged."""

import dataclasses
import json
import statistics
from pathlib import Path

import pytest
from test_commands import fails_with_one_line

from farmer_ref import PRESETS, ablate
from farmer_ref.ablate import AblateConfig, Runs, chosen_tables, model_flag, seeds_of_rows
from farmer_ref.comparisons import GUIDED, Claim, Row, Table, bases, blur_sentence, judge, report, tables, verdict
from farmer_ref.plots import comparison
from farmer_ref.prior import _channel_order


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
            assert claim.first in names and claim.second in names and claim.first != claim.second
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


def test_rows_share_the_runs_that_they_have_in_common(tmp_path):
    preset, runs = PRESETS["digits"], Runs(AblateConfig(runs=str(tmp_path), device="cpu"))
    table = tables(preset)
    shared = {runs.folder(preset, row, 0) for name in ("figure7", "figure8", "table5") for row in table[name].rows}
    assert shared == {tmp_path / "digits" / "60s" / "preset" / "seed0"}
    folders = {runs.folder(preset, row, 0) for row in table["table3"].rows}
    assert len(folders) == 6  # two rows differ from "split, both" in their sampling alone
    steps = runs.folder(preset, Row("r", {"informative": 2}, steps=9), 1)
    assert steps == tmp_path / "digits" / "9steps" / "informative=2" / "seed1"


def test_model_fields_as_flags():
    assert model_flag("final_permutation", False) == ["--model.no-final-permutation"]
    assert model_flag("final_permutation", True) == ["--model.final-permutation"]
    assert model_flag("informative", None) == ["--model.informative", None]


MEASURE = "frechet_distance"


def row_of(name, values):
    spread = statistics.stdev(values) if len(values) > 1 else None
    figures = {"mean": statistics.mean(values), "standard_deviation": spread, "seeds": values}
    return {"name": name, "frechet_distance": figures}


def word(ours, other, margin=None, higher_is_better=False, paired=False):
    return verdict(ours, other, margin, higher_is_better, paired)["verdict"]


def test_claims_are_judged_against_the_spread():
    low, high, wide = [1.0, 1.1, 0.9], [2.0, 2.1, 1.9], [0.0, 2.0, 4.0]
    assert word(low, high) == "holds"
    assert word(high, low) == "does not hold"
    assert word(low, wide) == "cannot be told"
    assert word([1.0], [2.0]) == "cannot be told from one seed"
    assert word([1.0, 1.1], [1.3, 1.2]) == "cannot be told"  # two seeds say little
    assert word([1.0, 1.02], [1.3, 1.28]) == "holds"
    assert word(high, low, higher_is_better=True) == "holds"
    varied = [1.0, 3.0, 5.0]
    assert word(varied, [v + 0.5 for v in varied]) == "cannot be told"
    assert word(varied, [v + 0.5 + d for v, d in zip(varied, [0, 0.1, -0.1], strict=True)], paired=True) == "holds"


def test_likeness_is_judged_against_margin_and_spread():
    close, far, wide = [1.0, 1.01, 0.99], [2.0, 2.01, 1.99], [0.0, 1.0, 2.0]
    assert word(close, [1.01, 1.0, 1.02], margin=0.1) == "holds"
    assert word(close, far, margin=0.1) == word(far, close, margin=0.1) == "does not hold"
    assert word(close, wide, margin=0.1) == "cannot be told"


def test_a_claim_is_a_sentence_by_every_measure():
    rows = {
        name: {
            "model": {"name": name},
            MEASURE: row_of(name, frechet)[MEASURE],
            "share_read_as_class": row_of(name, read)[MEASURE],
            "bits_per_dim": row_of(name, [2.0, 2.1, 2.2])[MEASURE],
        }
        for name, frechet, read in (
            ("a", [1.0, 1.1, 0.9], [0.5, 0.51, 0.52]),
            ("b", [2.0, 2.1, 1.9], [0.8, 0.81, 0.82]),
        )
    }
    judged = judge(Table("t", ()), Claim("a", "b"), rows)
    assert judged["sentence"] == (
        '"a better than b": by Fréchet holds (1.000 ± 0.100 against 2.000 ± 0.100); '
        "by read does not hold (51.0% ± 1.0% against 81.0% ± 1.0%). 3 seeds."
    )
    assert judged["verdicts"][MEASURE]["gain"] == pytest.approx(1.0)
    alike = judge(Table("t", (), measures=(MEASURE,)), Claim("a", "b", alike_within=0.1), rows)
    assert alike["sentence"].startswith('"a within 0.1 of b": by Fréchet does not hold')


@pytest.mark.parametrize(("last", "expected"), [(0.5, "holds"), (1.5, "does not hold"), (1.0, "cannot be told")])
def test_blur_is_judged_against_the_spread(last, expected):
    def fifth(level):
        return {"sharpness": row_of("r", [level, level + 0.02, level - 0.02])["frechet_distance"]}

    varied = [fifth(1.0) for _ in range(4)]
    assert f'blurred" {expected}:' in blur_sentence([*varied, fifth(last)])


def test_all_is_everything():
    names = set(chosen_tables(AblateConfig(all=True)))
    assert names == {"table3", "table4", "table5", "figure6a", "figure6b", "figure7", "figure8", "basis"}
    chosen = chosen_tables(AblateConfig(table=("4",), figure=("6a",), basis=True, data="cifar10"))
    assert list(chosen) == ["table4", "figure6a", "basis"]
    assert chosen["basis"][0] is PRESETS["cifar10"]
    assert chosen_tables(AblateConfig(basis=True))["basis"][0] is PRESETS["photographs"]
    limited = chosen_tables(AblateConfig(all=True, steps_per_run=7))
    assert {row.steps for row in limited["table3"][1].rows} == {7}
    assert {row.steps for row in limited["basis"][1].rows} == {None, 600}  # at equal seconds, and at equal steps


@pytest.mark.parametrize(("limits", "passed"), [({}, ["--max-minutes", 1.0]), ({"steps_per_run": 7}, ["--steps", 7])])
def test_runs_are_limited_by_time_or_by_steps(tmp_path, monkeypatch, limits, passed):
    config = AblateConfig(table=("4",), runs=str(tmp_path), device="cpu", **limits)
    lines = []
    monkeypatch.setattr(Runs, "_run", lambda self, *line: lines.append(line))
    for preset, table in chosen_tables(config).values():
        row = table.rows[-1]
        Runs(config).folder(preset, row, 0).mkdir(parents=True)
        Runs(config).train(preset, row, 0)
    assert [line[0] for line in lines] == ["train", "distill"]
    assert all(" ".join(map(str, passed)) in " ".join(map(str, line)) for line in lines)


def test_a_small_table_from_beginning_to_end(tmp_path, monkeypatch, capsys):
    rows = (
        Row("plain", paper="FID 2"),
        Row("no split", {"informative": None, "final_permutation": False}, GUIDED),
        Row("student", {}, (*GUIDED, "--student")),
    )
    small = Table(
        "A table", rows, (Claim("plain", "no split"),), speeds=lambda seconds: [f"{len(seconds)} were timed."]
    )
    seven = Table("Seven", tuple(Row(f"x {scale}", {}, ("--redundant-temperature", str(scale))) for scale in (0, 1)))
    monkeypatch.setattr(
        ablate, "tables", lambda preset: {"table3": small, "figure7": seven, "figure8": Table("Eight", rows[:1])}
    )
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results"), "--device", "cpu"]
    arguments = ["--table", "3", "--figure", "7", "8", "--steps-per-run", "20", "--samples", "20", *places]
    ablate.main(arguments)
    printed = capsys.readouterr().out
    assert "A table" in printed and "FID 2" in printed and "cannot be told from one seed" in printed
    record = json.loads((tmp_path / "results" / "table3.json").read_text())
    assert {"command", "commit", "device", "seconds_per_run", "seeds"} <= record.keys()
    assert record["steps_per_run"] == 20 and record["rows"][0]["steps"] == [20]
    assert [row["name"] for row in record["rows"]] == ["plain", "no split", "student"]
    assert record["rows"][0]["bits_per_dim"]["mean"] == record["rows"][2]["bits_per_dim"]["mean"]  # the same run
    assert set(record["rows"][0]["seconds_per_image"]) == {"forward", "prior", "back"}
    assert record["sentences"][-1] == "3 were timed."
    assert len(json.loads((tmp_path / "results" / "figure8.json").read_text())["fifths"]) == 5
    page = (tmp_path / "results" / "README.md").read_text()
    assert page == report(tmp_path / "results")
    for name in ("table3", "figure7", "figure8"):
        assert (tmp_path / "results" / f"{name}.png").stat().st_size > 1000
        assert f"({name}.json)" in page and f"({name}.png)" in page
    assert '- "plain better than no split": by Fréchet cannot be told from one seed' in page

    monkeypatch.setattr(Runs, "_run", lambda *_: pytest.fail("a finished run was started again"))
    before = (tmp_path / "results" / "table3.json").read_text()
    ablate.main([*arguments, "--suffix", "_again"])
    after = json.loads((tmp_path / "results" / "table3_again.json").read_text())
    assert (tmp_path / "results" / "table3.json").read_text() == before
    page = (tmp_path / "results" / "README.md").read_text()
    assert page.count("(table3.png)") == page.count("(table3_again.png)") == 1
    assert [row["bits_per_dim"] for row in after["rows"]] == [row["bits_per_dim"] for row in json.loads(before)["rows"]]


def test_test_images_are_limited_and_figures_of_fewer_kept_apart(tmp_path, monkeypatch):
    asked = []

    def run(self, command, *arguments):
        asked.append([str(argument) for argument in arguments])
        Path(arguments[arguments.index("--out") + 1]).write_text(json.dumps({"run": len(asked)}))

    monkeypatch.setattr(Runs, "_run", run)
    found = []
    for images in (None, 7):
        runs = Runs(AblateConfig(table=("3",), images=images, runs=str(tmp_path), device="cpu"))
        runs.folder(PRESETS["digits"], Row("plain"), 0).mkdir(parents=True, exist_ok=True)
        found.append(runs.figures(PRESETS["digits"], Row("plain"), 0)["run"])
    assert found == [1, 2] and "--images" not in asked[0]
    assert asked[1][asked[1].index("--images") + 1] == "7"


def test_rows_that_no_claim_compares_may_have_fewer_seeds():
    rows = (Row("a"), Row("b"), Row("c"))
    table, without_claims = Table("t", rows, (Claim("a", "c"),)), Table("t", rows)
    config = AblateConfig(table=("3",), seeds=3, other_seeds=1)
    assert seeds_of_rows(config, table) == {"a": range(3), "b": range(1), "c": range(3)}
    assert set(seeds_of_rows(config, without_claims).values()) == {range(3)}  # Fig. 8 is judged by its one row
    assert set(seeds_of_rows(AblateConfig(table=("3",), seeds=3), table).values()) == {range(3)}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["table is None", "--basis, --all"]),
        (["--table", "3", "--seeds", "0"], ["seeds is 0", "above 0"]),
        (["--table", "3", "--other-seeds", "0"], ["other_seeds is 0", "1 or more"]),
        (["--table", "3", "--images", "0"], ["images is 0"]),
        (["--table", "3", "--steps-per-run", "0"], ["steps_per_run is 0"]),
        (["--table", "3", "--side-by-side", "0"], ["side_by_side is 0"]),
        (["--table", "3", "--data", "mnist", "--no-download"], ["data_root is 'data'", "no whole mnist"]),
    ],
)
def test_ablate_refuses(capsys, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    fails_with_one_line(capsys, ablate.main, arguments, *parts)
    assert not list(tmp_path.iterdir())


def test_one_measure_has_a_figure_too():
    rows = [{"name": name, "bits_per_dim": {"mean": 2.0, "seeds": [1.9, 2.1]}} for name in ("one", "other")]
    (panel,) = comparison(rows, {"bits_per_dim": "bits/dim"}).axes
    assert panel.get_title() == "bits/dim" and len(panel.lines) == 4
