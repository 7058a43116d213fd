"""What every command does with a folder that is no run, or an output that cannot be written."""

import json

import pytest
from helpers import QUICK, fails_with_one_line

from farmer_ref import apply, evaluate, sample, train
from farmer_ref.support import cli


@pytest.mark.parametrize("command", [sample.main, evaluate.main])
def test_a_folder_that_is_no_run_is_named(capsys, tmp_path, command):
    fails_with_one_line(capsys, command, ["--run", tmp_path], str(tmp_path), "a run folder, or one of")


def test_outputs_that_cannot_be_written_are_named_before_the_work(capsys, trained, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    run = ["--run", trained, "--out"]
    fails_with_one_line(capsys, sample.main, [*run, tmp_path / "file" / "a.png"], "whose folder cannot be made")
    fails_with_one_line(capsys, sample.main, [*run, tmp_path / "folder.png"], "which is a folder")
    fails_with_one_line(capsys, evaluate.main, [*run, tmp_path], "which is a folder")
    fails_with_one_line(capsys, train.main, [*QUICK, "--out", tmp_path / "file" / "run"], "cannot be made")


FIGURES = [
    (evaluate.main, ["--images", "5", "--draws", "1", "--samples", "0"]),
    (apply.main, ["anomaly", "--count", "2", "--reference", "10", "--draws", "1"]),
    (apply.main, ["classify", "--count", "2", "--draws", "1"]),
]


@pytest.mark.parametrize(("command", "arguments"), FIGURES)
def test_figures_that_cannot_be_written_are_one_line(capsys, trained, tmp_path, monkeypatch, command, arguments):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.json").write_text("before")
    monkeypatch.setattr("pathlib.Path.write_text", denied)
    line = [*arguments, "--run", trained, "--out", tmp_path / "a.json"]
    printed = fails_with_one_line(capsys, command, line, "a.json cannot be written", "Permission denied")
    assert ("bits/dim" if command is evaluate.main else "%") in printed  # what was measured is shown all the same
    assert (tmp_path / "a.json").read_text() == "before"


@pytest.mark.parametrize(("command", "arguments"), FIGURES)
def test_figures_are_in_the_file_before_they_are_printed(trained, tmp_path, monkeypatch, command, arguments):
    """Printing may fail: a closed terminal, say."""

    def closed(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.print", closed)
    with pytest.raises(OSError, match="Input/output error"):
        command([*arguments, "--run", str(trained), "--out", str(tmp_path / "a.json")])
    assert len(json.loads((tmp_path / "a.json").read_text())) > 2


NAMES = ["\udcff", "x" * 5000, "a\nb", "../" * 2000]


@pytest.mark.parametrize("name", NAMES, ids=["surrogate", "long", "two lines", "deep"])
@pytest.mark.parametrize("flag", ["run", "out"])
@pytest.mark.parametrize("command", [sample.main, evaluate.main])
def test_a_name_that_no_file_can_have_is_one_line(capsys, trained, tmp_path, monkeypatch, command, flag, name):
    monkeypatch.chdir(tmp_path)
    arguments = ["--samples", "0", "--images", "5", "--draws", "1"] if command is evaluate.main else ["--rows", "1"]
    given = {"run": trained, "out": "a.png"} | {flag: name if flag == "run" else f"{name}/a.png"}
    if flag == "out" and name in ("\udcff", "a\nb"):  # a name like any other for a file system
        cli.run(lambda: command([*arguments, "--run", str(trained), "--out", given["out"]]))
        assert next(tmp_path.rglob("a.png")).stat().st_size
    else:
        fails_with_one_line(capsys, command, [*arguments, "--run", given["run"], "--out", given["out"]])
