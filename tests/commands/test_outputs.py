"""What every command does with a folder that is no run, or an output that cannot be written."""

import pytest
from helpers import QUICK, fails_with_one_line

from farmer_ref import apply, evaluate, sample, train


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


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (evaluate.main, ["--images", "5", "--draws", "1", "--samples", "0"]),
        (apply.main, ["anomaly", "--count", "2", "--reference", "10", "--draws", "1"]),
        (apply.main, ["classify", "--count", "2", "--draws", "1"]),
    ],
)
def test_figures_that_cannot_be_written_are_one_line(capsys, trained, tmp_path, monkeypatch, command, arguments):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.json").write_text("before")
    monkeypatch.setattr("pathlib.Path.write_text", denied)
    line = [*arguments, "--run", trained, "--out", tmp_path / "a.json"]
    fails_with_one_line(capsys, command, line, "a.json cannot be written", "Permission denied")
    assert (tmp_path / "a.json").read_text() == "before"
