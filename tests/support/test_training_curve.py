"""curve.png: training and validation are drawn where they can be compared, at the same noise."""

import json

import pytest
import torch
from helpers import QUICK, metrics

from farmer_ref import train
from farmer_ref.data.sets import load_split
from farmer_ref.evaluation.metrics import evaluate_likelihood
from farmer_ref.model.tokens import Dequantiser
from farmer_ref.support.plots import training_curve
from farmer_ref.training.runs import Run

BRIEF = [*QUICK, "--validate-every", "5", "--log-every", "5"]


def test_validation_has_the_noise_of_its_step(tmp_path, monkeypatch):
    asked = []

    def measuring(*arguments, **options):
        asked.append(options["noise_std"])
        return evaluate_likelihood(*arguments, **options)

    monkeypatch.setattr(train, "evaluate_likelihood", measuring)
    train.main([*BRIEF, "--model.dequantisation", "gaussian", "--out", str(tmp_path)])
    schedule = Dequantiser("gaussian", 17, noise_start=0.1, noise_final=0.005).noise_std_at
    wanted = {step: schedule(step / 20) for step in (5, 10, 15, 20)}
    assert asked == list(wanted.values()) and asked[-1] == 0.005
    lines = metrics(tmp_path)
    validated = {line["step"]: line["validation_noise_std"] for line in lines if "validation_nats_per_dim" in line}
    assert validated == wanted
    trained = {line["step"]: line["noise_std"] for line in lines if "nats_per_dim" in line}
    assert trained == {step: pytest.approx(schedule((step - 1) / 20)) for step in wanted}
    # An almost untrained model is the better the more noise there is: at one noise, the two kinds are close.
    measured = {line["step"]: line["validation_nats_per_dim"] for line in lines if "validation_nats_per_dim" in line}
    learnt = {line["step"]: line["nats_per_dim"] for line in lines if "nats_per_dim" in line}
    assert all(measured[step] == pytest.approx(learnt[step], abs=0.3) for step in wanted)

    curve, noise = training_curve(tmp_path).axes
    assert [list(line.get_xdata()) for line in curve.lines] == [list(wanted)] * 2
    assert curve.get_ylabel() == "nats/dim of the noised image"
    assert list(noise.lines[0].get_xdata()) == list(wanted) and "sigma" in noise.get_ylabel()
    assert noise.get_xlabel() == "step" and not curve.get_xlabel()


def test_the_noise_of_an_evaluation_can_be_chosen(tmp_path):
    train.main([*QUICK, "--model.dequantisation", "gaussian", "--out", str(tmp_path)])
    model = Run.open(tmp_path).load()
    data = load_split("digits", "validation", model.config)
    final, same, more = (evaluate_likelihood(model, data, draws=1, noise_std=s) for s in (None, 0.005, 0.1))
    assert final == same and more.nats_per_dim > final.nats_per_dim
    assert torch.isfinite(torch.tensor(more.nats_per_dim))


def test_a_uniform_run_has_one_panel_in_bits(tmp_path):
    train.main([*BRIEF, "--out", str(tmp_path)])
    (curve,) = training_curve(tmp_path).axes
    assert curve.get_ylabel() == "bits/dim" and curve.get_xlabel() == "step" and len(curve.lines) == 2
    assert not any("noise_std" in name for line in metrics(tmp_path) for name in line)


@pytest.mark.parametrize("name", ["bits_per_dim", "noise_std"])
def test_a_number_that_no_axis_can_show_is_drawn_all_the_same(tmp_path, name):
    lines = [{"step": 1, "bits_per_dim": 2, name: 1e308}, {"step": 2, "bits_per_dim": 2, name: -1e308}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training_curve(tmp_path).savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_a_figure_that_was_not_finite_is_a_gap_in_the_curve_and_stays_in_the_log(tmp_path):
    """The log holds it as null, as where a step was skipped: a run resumes all the same, and keeps its line."""
    train.main([*BRIEF, "--model.dequantisation", "gaussian", "--out", str(tmp_path)])
    log = tmp_path / "metrics.jsonl"
    first, *others = metrics(tmp_path)
    for name in set(first) - {"step"}:
        log.write_text("".join(json.dumps(line) + "\n" for line in (first | {name: None}, *others)))
        train.main([*BRIEF, "--model.dequantisation", "gaussian", "--out", str(tmp_path), "--resume"])
        assert metrics(tmp_path) == [first | {name: None}, *others]
        curve, noise = training_curve(tmp_path).axes
        gap = {"nats_per_dim": curve, "noise_std": noise}.get(name)
        assert gap is None or first["step"] not in gap.lines[0].get_xdata()
