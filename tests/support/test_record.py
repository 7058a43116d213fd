"""What stands beside measured numbers."""

from pathlib import Path

import pytest
import torch

from farmer_ref.support.record import git, processor, provenance


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git("rev-parse", "HEAD") == ""
    record = provenance(torch.device("cpu"))
    assert (record["commit"], record["uncommitted_changes"]) == ("", False)


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
