"""Checkpoints: an interrupted or killed run goes on, on a CPU bit for bit."""

import json
import re
import subprocess
import sys
import time

import pytest
import torch
from helpers import QUICK, assert_same, contents, stop_after

from farmer_ref import train
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.runs import Run


@pytest.mark.parametrize("changes", [[], ["--model.dropout", "0.2", "--model.dequantisation", "gaussian"]])
def test_ten_and_ten_steps_equal_twenty(tmp_path, changes):
    """Bit for bit: weights, EMA and optimiser; hence dropout, dequantisation, label dropout and data order, too."""
    train.main([*QUICK, *changes, "--out", str(tmp_path / "whole")])
    halves = [*QUICK, *changes, "--out", str(tmp_path / "halves"), "--checkpoint-every", "10"]
    stop_after(10, halves)
    assert checkpoints(tmp_path / "halves")[-1].name == "step-10"
    train.main([*halves, "--resume"])
    whole, resumed = (checkpoints(tmp_path / name)[-1] for name in ("whole", "halves"))
    assert whole.name == resumed.name == "step-20"
    kinds = {name.split(".")[0] for tensors in contents(whole).values() for name in tensors}
    assert kinds == {"model", "ema", "exp_avg", "exp_avg_sq"}
    assert_same(contents(whole), contents(resumed))
    assert_same(contents(tmp_path / "whole"), contents(tmp_path / "halves"))


def test_interruption_saves_and_reports(tmp_path, capsys):
    stop_after(7, [*QUICK, "--out", str(tmp_path)])
    assert "interrupted at step 7" in capsys.readouterr().out
    assert checkpoints(tmp_path)[-1].name == "step-7"


def kill_at_random_moments(folder, kills):
    """Train in a child, kill it with SIGKILL, and each time read the folder and resume.

    Checkpoints are written at every step, so that many kills hit one being written; the first kills come in the first
    moments. In the end the run must have the same weights, EMA and optimiser, bit for bit, as one that was left alone.
    """
    arguments = [*QUICK, "--steps", "1000000", "--checkpoint-every", "1"]
    command = [sys.executable, "-m", "farmer_ref.train", *arguments, "--resume", "--out", str(folder / "killed")]
    run, reached = folder / "killed", -1
    generator = torch.Generator().manual_seed(0)
    for number in range(kills):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while not (run / "config.json").exists() or (number > kills // 3 and newest_step(run) <= max(reached, 0)):
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.005)
        time.sleep(float(torch.rand(1, generator=generator)) * (1.5 if number else 0.05))
        child.kill()
        child.wait()
        assert torch.isfinite(Run.open(run).load().sample(torch.tensor([0]))).all()
        if checkpoints(run):
            newest, reached = checkpoints(run)[-1], newest_step(run)
            assert json.loads((newest / "state.json").read_text())["step"] == reached
    assert reached > 0
    stop_after(reached + 2, [*arguments, "--resume", "--out", str(run)])
    stop_after(reached + 2, [*QUICK, "--steps", "1000000", "--out", str(folder / "alone")])
    alone, killed = (checkpoints(folder / name)[-1] for name in ("alone", "killed"))
    assert alone.name == killed.name == f"step-{reached + 2}"
    assert_same(contents(alone), contents(killed))


def newest_step(folder):
    found = checkpoints(folder)
    return int(re.sub(r"\D", "", found[-1].name)) if found else -1


def test_killing_it_leaves_a_folder_that_resumes(tmp_path):
    kill_at_random_moments(tmp_path, kills=3)


@pytest.mark.slow
def test_killing_it_twenty_times(tmp_path):
    kill_at_random_moments(tmp_path, kills=20)
