"""The paper's tables at small scale: what is compared, what is kept, how claims are judged."""

import dataclasses
import json
import re
import statistics
from pathlib import Path

import pytest
from helpers import fails_with_one_line

from farmer_ref import PRESETS, ablate
from farmer_ref.ablate import AblateConfig, Runs, chosen_tables, measure, model_flag, result_path, seeds_of_rows
from farmer_ref.evaluation.tables import GUIDED, MEASURES, Claim, Row, Table, bases, tables
from farmer_ref.evaluation.verdicts import blur_sentence, judge, judged, report, verdict
from farmer_ref.model.prior import _channel_order
from farmer_ref.support.plots import comparison
from farmer_ref.support.record import ROOT

RESULTS = ROOT / "results"


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
    return verdict(ours, other, higher_is_better, paired, alike_within=margin)["verdict"]


def test_claims_are_judged_against_the_spread():
    low, high, wide = [1.0, 1.1, 0.9], [2.0, 2.1, 1.9], [0.0, 2.0, 4.0]
    assert word(low, high) == "holds"
    assert word(high, low) == "does not hold"
    assert word(low, wide) == "inconclusive"
    assert word([1.0], [2.0]) == "inconclusive with one seed"
    assert word([1.0, 1.1], [1.3, 1.2]) == "inconclusive"  # two seeds say little
    assert word([1.0, 1.02], [1.3, 1.28]) == "holds"
    assert word(high, low, higher_is_better=True) == "holds"
    varied = [1.0, 3.0, 5.0]
    assert word(varied, [v + 0.5 for v in varied]) == "inconclusive"
    assert word(varied, [v + 0.5 + d for v, d in zip(varied, [0, 0.1, -0.1], strict=True)], paired=True) == "holds"
    for margin, expected in ((0.5, "holds"), (1.0, "inconclusive"), (1.5, "does not hold")):
        assert verdict(low, high, False, False, at_least=margin)["verdict"] == expected


def test_likeness_is_judged_against_margin_and_spread():
    close, far, wide = [1.0, 1.01, 0.99], [2.0, 2.01, 1.99], [0.0, 1.0, 2.0]
    assert word(close, [1.01, 1.0, 1.02], margin=0.1) == "holds"
    assert word(close, far, margin=0.1) == word(far, close, margin=0.1) == "does not hold"
    assert word(close, wide, margin=0.1) == "inconclusive"


def test_a_claim_is_a_sentence_by_every_measure():
    rows = {
        name: {
            "model": {},
            "steps": [9, 9, 9],
            MEASURE: row_of(name, frechet)[MEASURE],
            "sample_accuracy": row_of(name, read)[MEASURE],
            "bits_per_dim": row_of(name, [2.0, 2.1, 2.2])[MEASURE],
        }
        for name, frechet, read in (
            ("a", [1.0, 1.1, 0.9], [0.5, 0.51, 0.52]),
            ("b", [2.0, 2.1, 1.9], [0.8, 0.81, 0.82]),
        )
    }
    judged = judge(Table("t", ()), Claim("a", "b"), rows)
    assert judged["sentence"] == (
        '"a better than b": by Fréchet, holds (1.000 ± 0.100 against 2.000 ± 0.100); '
        "by accuracy, does not hold (51.0% ± 1.0% against 81.0% ± 1.0%). 3 seeds."
    )
    assert judged["verdicts"][MEASURE]["gain"] == pytest.approx(1.0)
    alike = judge(Table("t", (), measures=(MEASURE,)), Claim("a", "b", alike_within=0.1), rows)
    assert alike["sentence"].startswith('"a within 0.1 of b": by Fréchet, does not hold')
    assert judge(Table("t", (), measures=(MEASURE,)), Claim("a", "a", alike_within=0.2), rows)["sentence"].startswith(
        '"a within 0.2 of a": by Fréchet, holds'
    )
    both = judge(Table("t", (), measures=(MEASURE,)), Claim("a", "a", alike_within=0.2, others=("b",)), rows)
    assert both["sentence"].startswith(  # one claim of two rows fails if it fails of one
        '"a and b within 0.2 of a": by Fréchet, does not hold (1.000 ± 0.100 and 2.000 ± 0.100 against 1.000 ± 0.100)'
    )
    far = judge(Table("t", (), measures=(MEASURE,)), Claim("a", "b", at_least=2), rows)
    assert far["sentence"].startswith('"a better than b by 2 or more": by Fréchet, does not hold')


def test_two_ways_to_sample_from_one_model_are_compared_by_samples_alone_and_equal_ones_are_alike():
    row = {"model": {}, "steps": [9, 9], **{name: row_of("r", [0.5, 0.6])[MEASURE] for name in MEASURES}}
    table = Table("t", (), measures=tuple(MEASURES))
    judged = judge(table, Claim("a", "b", alike_within=0.02), {"a": row, "b": row})
    assert {name: said["verdict"] for name, said in judged["verdicts"].items()} == {
        "sample_accuracy": "holds",
        MEASURE: "holds",
    }
    others = {**row, "steps": [9, 8]}  # models of their own: a likelihood that happens to be the same is a figure, too
    assert "bits_per_dim" in judge(table, Claim("a", "b"), {"a": row, "b": others})["verdicts"]


@pytest.mark.parametrize("path", sorted(path for path in RESULTS.glob("*.json") if "sentences" in path.read_text()))
def test_what_is_said_of_the_committed_rows_follows_from_them(path):
    """From the code as it is: a changed claim, row or rule must not stand beside old sentences."""
    record = json.loads(path.read_text())
    name, preset = path.stem.split("_")[0], PRESETS[record["data"]]
    steps = {int(number) for row in record["rows"] for number in re.findall(r", (\d+) steps", row["name"])} or {1}
    table = bases(preset, *steps) if name == "basis" else tables(preset)[name]
    assert [(row["name"], row["model"], row["sampling"], row["paper"]) for row in record["rows"]] == [
        (row.name, row.model, list(row.sampling), row.paper) for row in table.rows
    ]
    assert (record["title"], record["note"]) == (table.title, table.note)
    said = json.loads(json.dumps(judged(table, record["rows"], record.get("fifths"))))
    assert said == {name: record[name] for name in ("claims", "sentences")}


@pytest.mark.parametrize(
    ("last", "expected"), [(0.5, "holds"), (0.95, "holds weakly"), (1.5, "does not hold"), (1.0, "inconclusive")]
)
def test_blur_is_judged_against_the_spread(last, expected):
    def fifth(level):
        return {"sharpness": row_of("r", [level, level + 0.01, level - 0.01])["frechet_distance"]}

    varied = [fifth(level) for level in (1.01, 1.0, 1.0, 0.99)]
    assert f'blurred" {expected}:' in blur_sentence([*varied, fifth(last)])


def test_all_is_everything():
    names = set(chosen_tables(AblateConfig(all=True)))
    assert names == {"table3", "table4", "table5", "figure6a", "figure6b", "figure7", "figure8", "basis"}
    chosen = chosen_tables(AblateConfig(table=("4",), figure=("6a",), basis=True, data="cifar10"))
    assert list(chosen) == ["table4", "figure6a", "basis"]
    assert chosen["basis"][0] is PRESETS["cifar10"]
    assert chosen_tables(AblateConfig(basis=True, data="mnist"))["basis"][0] is PRESETS["mnist"]
    assert chosen_tables(AblateConfig(basis=True))["basis"][0] is PRESETS["photographs"]
    limited = chosen_tables(AblateConfig(all=True, steps_per_run=7))
    assert {row.steps for row in limited["table3"][1].rows} == {7}
    assert {row.steps for row in limited["basis"][1].rows} == {None, 400}  # at equal seconds, and at equal steps


def test_results_of_other_data_are_other_files():
    def stem(name, data, **options):
        return result_path(AblateConfig(out="o", **options), name, PRESETS[data])

    assert stem("table3", "digits") == Path("o/table3.json")
    assert stem("table3", "photographs") == Path("o/table3_photographs.json")
    assert stem("basis", "photographs", suffix="_long") == Path("o/basis_long.json")
    assert stem("basis", "mnist") == Path("o/basis_mnist.json")
    assert AblateConfig().out != "results"  # a quick look does not replace what the book prints


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
        Row("exact inverse", paper="FID 2"),
        Row("no split", {"informative": None, "final_permutation": False}, GUIDED),
        Row("one-step student", {}, (*GUIDED, "--student")),
    )
    small = Table("A table", rows, (Claim("exact inverse", "no split"),), speeds="sampling")
    seven = Table("Seven", tuple(Row(f"x {scale}", {}, ("--redundant-temperature", str(scale))) for scale in (0, 1)))
    monkeypatch.setattr(
        ablate, "tables", lambda preset: {"table3": small, "figure7": seven, "figure8": Table("Eight", rows[:1])}
    )
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results"), "--device", "cpu"]
    arguments = ["--table", "3", "--figure", "7", "8", "--steps-per-run", "20", "--samples", "50", *places]
    ablate.main(arguments)
    printed = capsys.readouterr().out
    assert "A table" in printed and "FID 2" in printed and "inconclusive with one seed" in printed
    record = json.loads((tmp_path / "results" / "table3.json").read_text())
    assert {"command", "commit", "device", "seconds_per_run", "seeds"} <= record.keys()
    assert record["steps_per_run"] == 20 and record["rows"][0]["steps"] == [20]
    assert [row["name"] for row in record["rows"]] == ["exact inverse", "no split", "one-step student"]
    assert record["rows"][0]["bits_per_dim"]["mean"] == record["rows"][2]["bits_per_dim"]["mean"]  # the same run
    assert set(record["rows"][0]["seconds_per_image"]) == {"forward", "prior", "prior unguided", "back"}
    assert "times as fast" in record["sentences"][-1]
    assert len(json.loads((tmp_path / "results" / "figure8.json").read_text())["fifths"]) == 5
    page = (tmp_path / "results" / "README.md").read_text()
    assert page == report(tmp_path / "results")
    for name in ("table3", "figure7", "figure8"):
        assert (tmp_path / "results" / f"{name}.png").stat().st_size > 1000
        assert f"({name}.json)" in page and f"({name}.png)" in page
    assert '- "exact inverse better than no split": by Fréchet, inconclusive with one seed' in page

    fails_with_one_line(capsys, ablate.main, [*arguments, "--keep"], "keep is True", "False for table3")
    monkeypatch.setattr(Runs, "_run", lambda *_: pytest.fail("a finished run was started again"))
    before = (tmp_path / "results" / "table3.json").read_text()
    ablate.main([*arguments, "--suffix", "_again"])
    after = json.loads((tmp_path / "results" / "table3_again.json").read_text())
    assert (tmp_path / "results" / "table3.json").read_text() == before
    page = (tmp_path / "results" / "README.md").read_text()
    assert page.count("(table3.png)") == page.count("(table3_again.png)") == 1
    assert [row["bits_per_dim"] for row in after["rows"]] == [row["bits_per_dim"] for row in json.loads(before)["rows"]]
    capsys.readouterr()
    monkeypatch.setitem(ablate.PRESETS, "digits", dataclasses.replace(PRESETS["digits"], learning_rate=0.5))
    fails_with_one_line(capsys, ablate.main, arguments, "runs is", "the preset is not what it was")


def test_figures_of_a_result_file_are_kept_and_others_added(tmp_path, monkeypatch, capsys):
    trained = []

    def run(self, command, *arguments):
        if command == "train":
            folder = Path(arguments[arguments.index("--out") + 1])
            trained.append((folder.parent.name, folder.name))
            folder.mkdir(parents=True)
        else:
            figures = dict.fromkeys(MEASURES, float(len(trained)))
            Path(arguments[arguments.index("--out") + 1]).write_text(json.dumps(figures))

    monkeypatch.setattr(Runs, "_run", run)
    monkeypatch.setattr(ablate, "last_state", lambda folder: {"step": 9, "seconds": 1.0})
    first, second = Row("first"), Row("second", {"components": 3})
    monkeypatch.setattr(ablate, "tables", lambda preset: {"table3": Table("A table", (first,))})
    arguments = ["--table", "3", "--out", str(tmp_path / "results"), "--device", "cpu", "--runs"]
    ablate.main([*arguments, str(tmp_path / "runs")])
    assert trained == [("preset", "seed0")]

    monkeypatch.setattr(ablate, "tables", lambda preset: {"table3": Table("A table", (first, second))})
    ablate.main([*arguments, str(tmp_path / "elsewhere"), "--keep", "--seeds", "2"])
    assert set(trained[1:]) == {("preset", "seed1"), ("components=3", "seed0"), ("components=3", "seed1")}
    record = json.loads((tmp_path / "results" / "table3.json").read_text())
    assert [len(row["bits_per_dim"]["seeds"]) for row in record["rows"]] == [2, 2]
    assert record["rows"][0]["bits_per_dim"]["seeds"][0] == 1.0 and record["rows"][0]["steps"] == [9, 9]
    assert record["kept"][0].keys() == {"command", "commit", "date", "device"}
    assert "and before it `" in report(tmp_path / "results")
    again = [*arguments, str(tmp_path / "elsewhere"), "--keep", "--samples", "7"]
    capsys.readouterr()
    fails_with_one_line(capsys, ablate.main, again, "samples is 7", "1000")


def test_a_run_at_hand_counts_before_a_figure_of_a_result_file(tmp_path, monkeypatch):
    runs = Runs(AblateConfig(table=("3",), runs=str(tmp_path), device="cpu"))
    table, preset = Table("t", (Row("r"),)), PRESETS["digits"]
    monkeypatch.setattr(Runs, "train", lambda *_: None)
    monkeypatch.setattr(Runs, "figures", lambda *_: dict.fromkeys(MEASURES, 1.0))
    monkeypatch.setattr(ablate, "last_state", lambda folder: {"step": 9, "seconds": 1.0})
    old = {**{name: {"seeds": [2.0]} for name in MEASURES}, "steps": [5], "training_seconds": [1.0]}
    earlier = [{"name": "r", "model": {}, "sampling": [], **old}]
    assert measure(runs, preset, table, earlier)[0]["bits_per_dim"]["seeds"] == [2.0]
    runs.folder(preset, table.rows[0], 0).mkdir(parents=True)
    (runs.folder(preset, table.rows[0], 0) / "finished").write_text(runs.settings(preset, table.rows[0]))
    assert measure(runs, preset, table, earlier)[0]["bits_per_dim"]["seeds"] == [1.0]


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
        (["--figure", "8", "--samples", "49"], ["samples is 49", "50 or more for figure8"]),
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
    timed = [row | {"seconds_per_image": {"forward": 0.001, "prior": 0.002, "back": 0.003}} for row in rows]
    *_, panel = comparison(timed, {"bits_per_dim": "bits/dim"}).axes
    assert [bar.get_width() for bar in panel.patches] == [2, 2, 3, 3]  # of both rows the prior, then the way back
