"""What stands beside measured numbers."""

import torch

from farmer_ref.support.record import git, provenance


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git("rev-parse", "HEAD") == ""
    record = provenance(torch.device("cpu"))
    assert (record["commit"], record["uncommitted_changes"]) == ("", False)
