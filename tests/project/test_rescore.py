"""Scoring a shipped model again, where how it is scored has changed: `python -m benchmarks.digits --rescore`."""

import json
import shutil

import pytest

from benchmarks import digits
from farmer_ref.support.files import PRETRAINED
from farmer_ref.support.record import ROOT

SCORES = ("nats_per_dim", "bits_per_dim", "importance_weighted_bits_per_dim", "sample_accuracy", "frechet_distance")


@pytest.mark.parametrize("name", ["digits", "digits-noise"])
def test_records_and_results_of_shipped_models_agree(name):
    record = json.loads((PRETRAINED / name / "record.json").read_text())
    results = json.loads((ROOT / "results" / f"{name}.json").read_text())
    (run,) = (run for run in results["runs"] if run["seed"] == record["seed"])
    assert {score: run[score] for score in SCORES} == {score: record[score] for score in SCORES}


def test_rescoring_changes_scores_and_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "digits").mkdir()
    (tmp_path / "results").mkdir()
    paths = tmp_path / "digits" / "record.json", tmp_path / "results" / "digits.json"
    shutil.copy(PRETRAINED / "digits" / "record.json", paths[0])
    shutil.copy(ROOT / "results" / "digits.json", paths[1])
    before, results_before = (json.loads(path.read_text()) for path in paths)
    monkeypatch.setattr(digits, "PRETRAINED", tmp_path)
    monkeypatch.setattr(digits, "ROOT", tmp_path)
    monkeypatch.setattr(digits, "evaluate", lambda config: {"run": config.run, "bits_per_dim": 1.0, "images": 300})
    digits.main(["--rescore", "--threads", "1"])
    assert capsys.readouterr().out == f"bits_per_dim: {before['bits_per_dim']} before, 1.0 now\n"
    record, results = (json.loads(path.read_text()) for path in paths)
    assert record["bits_per_dim"] == 1.0 and "commit" in record["rescored"]
    kept = before.keys() - {"bits_per_dim", "rescored"}
    assert {name: record[name] for name in kept} == {name: before[name] for name in kept}
    assert results["rescored"]["seeds"] == [before["seed"]]
    ours, *others = results["runs"]
    assert ours["bits_per_dim"] == 1.0 and others == results_before["runs"][1:]
    mean = sum(run["bits_per_dim"] for run in results["runs"]) / 3
    assert results["bits_per_dim"]["mean"] == pytest.approx(mean)
    assert results["settings"] == results_before["settings"]
