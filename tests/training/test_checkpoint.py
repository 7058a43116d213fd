"""Checkpoints: an interrupted or killed run goes on, on a CPU bit for bit."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest
import torch
from helpers import QUICK, assert_same, contents, fails_with_one_line, stop_after, wait_until

from farmer_ref import InputError, sample, train
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.runs import Run
from farmer_ref.training.trainer import Trainer, require_compiler


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
        try:
            least = max(reached, 0) + 1 if number > kills // 3 else -1
            wait_until(lambda least=least: (run / "config.json").exists() and newest_step(run) >= least, child)
            time.sleep(float(torch.rand(1, generator=generator)) * (1.5 if number else 0.05))
        finally:
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


def test_a_flipped_bit_is_noticed(capsys, tmp_path):
    arguments = [*QUICK, "--steps", "4", "--out", str(tmp_path)]
    train.main(arguments)
    newest = checkpoints(tmp_path)[-1]
    (shard,) = newest.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    shard.unlink()
    content[-5] ^= 1
    shard.write_bytes(content)
    capsys.readouterr()
    again = [*QUICK, "--steps", "8", "--resume", "--out", tmp_path]
    fails_with_one_line(capsys, train.main, again, f"{shard} has changed", f"delete {newest}")
    fails_with_one_line(capsys, sample.main, ["--run", tmp_path, "--weights", "raw"], f"{shard} has changed")


def test_a_checkpoint_from_before_checksums_resumes(tmp_path):
    train.main([*QUICK, "--steps", "4", "--out", str(tmp_path)])
    path = checkpoints(tmp_path)[-1] / "state.json"
    state = json.loads(path.read_text())
    assert len(state.pop("checksums")) == state["files"]
    path.write_text(json.dumps(state))
    train.main([*QUICK, "--steps", "8", "--resume", "--out", str(tmp_path)])
    assert checkpoints(tmp_path)[-1].name == "step-8"


def test_weights_that_are_not_finite_are_never_written(tmp_path, monkeypatch):
    optimise = Trainer._optimise

    def poisoning(trainer, batch):
        if trainer.step == 5:
            next(trainer.model.parameters()).data[0, 0] = torch.nan
        return optimise(trainer, batch)

    monkeypatch.setattr(Trainer, "_optimise", poisoning)
    with pytest.raises(InputError, match="are not finite at step 8; .* are intact"):
        train.main([*QUICK, "--checkpoint-every", "4", "--steps", "8", "--out", str(tmp_path)])
    assert checkpoints(tmp_path)[-1].name == "step-4"


def test_training_works_in_a_thread(tmp_path):
    thread = threading.Thread(target=train.main, args=([*QUICK, "--steps", "3", "--out", str(tmp_path)],))
    thread.start()
    thread.join()
    assert checkpoints(tmp_path)[-1].name == "step-3"


def test_compiling_without_a_compiler_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    fails_with_one_line(capsys, train.main, [*QUICK, "--compile", "--out", tmp_path], "there is no no-such-compiler")


@pytest.mark.skipif(os.name == "nt", reason="Windows' compiler is on no path")
def test_compiling_for_a_gpu_asks_for_what_triton_uses(monkeypatch, tmp_path):
    """A C compiler: CC, gcc or clang. A C++ compiler is neither needed nor enough."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    cuda = torch.device("cuda")

    def install(name):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)

    install("g++")
    with pytest.raises(InputError, match="there is no gcc or clang here"):
        require_compiler(cuda)
    install("clang")
    require_compiler(cuda)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(InputError, match="there is no no-such-compiler here"):
        require_compiler(cuda)
