"""The paper's tables at small scale: what is compared, what is kept, how claims are judged."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import fails_with_one_line

from farmer_ref import PRESETS, InputError, ablate
from farmer_ref.ablate import AblateConfig, Runs, chosen_tables, measure, result_path, seeds_of_rows
from farmer_ref.evaluation.results import Figures
from farmer_ref.evaluation.tables import GUIDED, MEASURES, Claim, Row, Table, tables
from farmer_ref.evaluation.verdicts import report
from farmer_ref.support import cli
from farmer_ref.training.checkpoint import State

LAST = State(step=9, seconds=1.0, skipped=0, skipped_in_a_row=0, files=1)


def test_rows_share_the_runs_that_they_have_in_common(tmp_path):
    preset, runs = PRESETS["digits"], Runs(AblateConfig(runs=str(tmp_path), device="cpu"))
    table = tables(preset)
    shared = {runs.folder(preset, row, 0) for name in ("figure7", "figure8", "table5") for row in table[name].rows}
    assert shared == {tmp_path / "digits" / "60s" / "preset" / "seed0"}
    folders = {runs.folder(preset, row, 0) for row in table["table3"].rows}
    assert len(folders) == 6  # two rows differ from "split, both" in their sampling alone
    steps = runs.folder(preset, Row("r", {"informative": 2}, steps=9), 1)
    assert steps == tmp_path / "digits" / "9steps" / "informative=2" / "seed1"


def test_all_is_everything():
    names = set(chosen_tables(AblateConfig(all=True)))
    assert names == {"table3", "table4", "table5", "figure6a", "figure6b", "figure7", "figure8", "basis"}
    chosen = chosen_tables(AblateConfig(table=("4",), figure=("6a",), basis=True, data="cifar10"))
    assert list(chosen) == ["table4", "figure6a", "basis"]
    assert chosen["basis"][0] == PRESETS["cifar10"]
    assert chosen_tables(AblateConfig(basis=True, data="mnist"))["basis"][0].preset == "mnist"
    assert chosen_tables(AblateConfig(basis=True))["basis"][0] == PRESETS["photographs"]


@pytest.mark.parametrize("pixels", ["linear", "histogram"])
def test_all_rows_have_the_same_coordinates_of_pixels(tmp_path, monkeypatch, pixels):
    """Whatever the preset's are, and in files and folders of their own."""
    config = AblateConfig(table=("3",), data="mnist", pixels=pixels, runs=str(tmp_path), out="o", device="cpu")
    (name, (preset, table)), *_ = chosen_tables(config).items()
    assert preset.model.pixels == pixels
    written = "table3_mnist.json" if pixels == "linear" else "table3_mnist_histogram.json"
    assert result_path(config, name, preset).name == written
    ran, runs = [], Runs(config)
    monkeypatch.setattr(Runs, "_run", lambda self, *line: ran.append([str(part) for part in line]))
    folder = runs.folder(preset, table.rows[0], 0)
    folder.mkdir(parents=True)
    assert folder.is_relative_to(tmp_path / {"linear": "mnist"}.get(pixels, f"mnist-{pixels}"))
    runs.train(preset, table.rows[0], 0)
    assert ran[0][ran[0].index("--model.pixels") + 1] == pixels
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
        row = table.rows[2]
        Runs(config).folder(preset, row, 0).mkdir(parents=True)
        Runs(config).train(preset, row, 0)
        Runs(config).distil(preset, row, 0)
    assert [line[0] for line in lines] == ["train", "distill"]
    assert all(" ".join(map(str, passed)) in " ".join(map(str, line)) for line in lines)


def test_a_small_table_from_beginning_to_end(tmp_path, monkeypatch, capsys):
    in_a_process, started = Runs._run, []

    def run(self, command, *arguments):
        """The first run of each command in a process of its own, as always; the others here, which is faster."""
        if command not in started:
            started.append(command)
            in_a_process(self, command, *arguments)
        else:
            main = importlib.import_module(f"farmer_ref.{command}").main
            main([*map(str, arguments), "--device", str(self.device)])

    monkeypatch.setattr(Runs, "_run", run)
    monkeypatch.setattr(ablate, "TIMED_ROUNDS", 3)
    shape = {"flow_layers": 1, "flow_width": 32, "prior_layers": 1, "prior_width": 32}
    rows = (
        Row("exact inverse", shape, paper="FID 2"),
        Row("no split", {**shape, "informative": None, "final_permutation": False}, GUIDED),
        Row("one-step student", shape, (*GUIDED, "--student")),
    )
    small = Table("A table", rows, (Claim("exact inverse", "no split"),), speeds="sampling")
    seven = Table("Seven", tuple(Row(f"x {scale}", shape, ("--redundant-temperature", str(scale))) for scale in (0, 1)))
    monkeypatch.setattr(
        ablate, "tables", lambda preset: {"table3": small, "figure7": seven, "figure8": Table("Eight", rows[:1])}
    )
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results"), "--device", "cpu"]
    places += ["--side-by-side", "1"]
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
    for name in ("table3.svg", "figure7.png", "figure8.png"):  # a plot, and samples
        assert (tmp_path / "results" / name).stat().st_size > 1000
        assert f"({name.split('.')[0]}.json)" in page and f"({name})" in page
    assert '- "exact inverse better than no split": by Fréchet, inconclusive with one seed' in page

    fails_with_one_line(capsys, ablate.main, [*arguments, "--keep"], "keep is True", "False for table3")
    monkeypatch.setattr(Runs, "_run", lambda *_: pytest.fail("a finished run was started again"))
    before = (tmp_path / "results" / "table3.json").read_text()
    ablate.main([*arguments, "--suffix", "_again"])
    after = json.loads((tmp_path / "results" / "table3_again.json").read_text())
    assert (tmp_path / "results" / "table3.json").read_text() == before
    page = (tmp_path / "results" / "README.md").read_text()
    assert page.count("(table3.svg)") == page.count("(table3_again.svg)") == 1
    assert [row["bits_per_dim"] for row in after["rows"]] == [row["bits_per_dim"] for row in json.loads(before)["rows"]]
    capsys.readouterr()
    monkeypatch.setitem(ablate.PRESETS, "digits", dataclasses.replace(PRESETS["digits"], learning_rate=0.5))
    fails_with_one_line(capsys, ablate.main, arguments, "runs is", "the preset has changed")


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
    monkeypatch.setattr(ablate, "last_state", lambda folder: LAST)
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
    monkeypatch.setattr(Runs, "figures", lambda *_: Figures(**dict.fromkeys(MEASURES, 1.0)))
    monkeypatch.setattr(ablate, "last_state", lambda folder: LAST)
    old = {**{name: {"seeds": [2.0]} for name in MEASURES}, "steps": [5], "training_seconds": [1.0]}
    earlier = [{"name": "r", "model": {}, "sampling": [], **old}]
    assert measure(runs, preset, table, earlier=earlier)[0]["bits_per_dim"]["seeds"] == [2.0]
    runs.folder(preset, table.rows[0], 0).mkdir(parents=True)
    (runs.folder(preset, table.rows[0], 0) / "finished").write_text(runs.settings(preset, table.rows[0]))
    assert measure(runs, preset, table, earlier=earlier)[0]["bits_per_dim"]["seeds"] == [1.0]


def test_test_images_are_limited_and_figures_of_fewer_kept_apart(tmp_path, monkeypatch):
    asked = []

    def run(self, command, *arguments):
        asked.append([str(argument) for argument in arguments])
        Path(arguments[arguments.index("--out") + 1]).write_text(json.dumps(dict.fromkeys(MEASURES, len(asked))))

    monkeypatch.setattr(Runs, "_run", run)
    found = []
    for images in (None, 7):
        runs = Runs(AblateConfig(table=("3",), images=images, runs=str(tmp_path), device="cpu"))
        runs.folder(PRESETS["digits"], Row("plain"), 0).mkdir(parents=True, exist_ok=True)
        found.append(runs.figures(PRESETS["digits"], Row("plain"), 0).bits_per_dim)
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
        (["--table", "3", "--seeds", "0"], ["seeds is 0", "1 to 1,000,000"]),
        (["--table", "3", "--seeds", str(10**18)], ["seeds is 1000000000000000000", "1 to 1,000,000"]),
        (["--table", "3", "--other-seeds", "0"], ["other_seeds is 0", "1 to 1,000,000"]),
        (["--table", "3", "--other-seeds", str(10**18)], ["other_seeds is 1000000000000000000"]),
        (["--table", "3", "--images", "0"], ["images is 0"]),
        (["--table", "3", "--steps-per-run", "0"], ["steps_per_run is 0"]),
        (["--figure", "8", "--samples", "49"], ["samples is 49", "50 or more for figure8"]),
        (["--table", "3", "--side-by-side", "0"], ["side_by_side is 0"]),
        (["--table", "3", "--data", "mnist", "--no-download"], ["data_root is 'data'", "no complete mnist"]),
    ],
)
def test_ablate_refuses(capsys, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    fails_with_one_line(capsys, ablate.main, arguments, *parts)
    assert not list(tmp_path.iterdir())


def test_the_students_of_a_run_have_a_folder_for_each_form(tmp_path, monkeypatch):
    runs, lines = Runs(AblateConfig(runs=str(tmp_path), device="cpu")), []
    monkeypatch.setattr(Runs, "_run", lambda self, *line: lines.append(line))
    preset, student = PRESETS["digits"], (*GUIDED, "--student")
    rows = Row("paper's", {}, student), Row("ours", {}, student, form="inverse")
    folder = runs.folder(preset, rows[0], 0)
    assert [runs.sampled_folder(preset, row, 0) for row in rows] == [folder, folder.with_name("seed0-inverse")]
    assert runs.folder(preset, rows[1], 0) == folder  # the teacher is one
    for row in rows * 2:  # once each
        runs.sampled_folder(preset, row, 0).mkdir(parents=True, exist_ok=True)
        runs.distil(preset, row, 0)
    passed = [[line[line.index(name) + 1] for name in ("--run", "--out", "--form")] for line in lines]
    assert passed == [[folder, folder, "forward"], [folder, folder.with_name("seed0-inverse"), "inverse"]]
    (folder / "distilled").write_text("")  # as it was before there were two forms
    with pytest.raises(InputError, match="distilled'; allowed: students that say their form, here 'forward'"):
        runs.distil(preset, rows[0], 0)


@pytest.mark.parametrize("suffix", ["../../x", "\udcff", "a b", "/x"])
def test_a_suffix_names_a_file_of_the_folder(capsys, tmp_path, suffix):
    line = ["--table", "3", "--suffix", suffix, "--out", str(tmp_path / "out")]
    fails_with_one_line(capsys, ablate.main, line, "suffix is", "letters, digits, _ and -")


@pytest.mark.parametrize("signal", [KeyboardInterrupt, cli.Terminated])
def test_what_ends_a_table_ends_its_runs(monkeypatch, signal):
    """They are processes of their own, which SIGTERM has not reached; it waited for them, for hours."""
    runs, child = Runs(AblateConfig(device="cpu")), subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
    runs._children.add(child)

    def interrupted(results, **_):
        raise signal

    monkeypatch.setattr(ablate, "tqdm", interrupted)
    with pytest.raises(signal):
        runs.in_parallel("train", child.wait, [()])
    assert child.returncode != 0
    child.stdin.close()


def test_runs_side_by_side_are_as_many_as_the_processors_at_hand(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 6}, raising=False)
    assert Runs(AblateConfig(device="cpu")).side_by_side == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert Runs(AblateConfig(device="cpu")).side_by_side == os.cpu_count()
