"""What stands beside measured numbers."""

import subprocess
from pathlib import Path

import pytest
import torch

from farmer_ref.support import record
from farmer_ref.support.record import git, processor, provenance, readable


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git("rev-parse", "HEAD") == ""
    made = provenance(torch.device("cpu"))
    assert (made["commit"], made["uncommitted_changes"]) == ("", False)


def test_an_installed_package_has_no_commit_of_the_repository_around_it(monkeypatch, tmp_path):
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert git("rev-parse", "--is-inside-work-tree") == "true"
    monkeypatch.setattr(record, "ROOT", tmp_path / "site-packages")
    assert git("rev-parse", "--is-inside-work-tree") == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AMD EPYC", "AMD EPYC, family 25, model 17"),
        ("AMD EPYC 9554 64-Core Processor", "AMD EPYC 9554 64-Core Processor"),
    ],
)
def test_a_processor_whose_name_says_little_has_its_family_and_model(monkeypatch, name, expected):
    core = f"processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {name}\n"
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: f"{core}\n{core}")
    assert processor() == expected


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("Intel(R) Xeon(R) Processor", "Intel Xeon"),
        ("Intel(R) Xeon(R) Processor, family 6, model 207", "Intel Xeon, family 6, model 207"),
        ("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", "Intel Core i7-8700 @ 3.20GHz"),
        ("AMD EPYC, family 25, model 17", "AMD EPYC, family 25, model 17"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
    ],
)
def test_a_device_is_shown_without_its_trade_marks(recorded, shown):
    assert readable(recorded) == shown
