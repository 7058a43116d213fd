"""The training loop: exact resumption, skipped steps, checkpoints that survive anything."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import QUICK, assert_same, contents, stop_after, weights_of

from farmer_ref import PRESETS, Farmer, InputError, train
from farmer_ref.data.order import Batch, training_images
from farmer_ref.model.tokens import Dequantiser
from farmer_ref.support.parallel import join, resolve_device
from farmer_ref.support.plots import training_curve
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.config import TrainConfig
from farmer_ref.training.runs import Run
from farmer_ref.training.trainer import MovingAverage, Trainer, learning_rate_at, make_optimiser


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


def test_run_folder(tmp_path):
    train.main([*QUICK, "--out", str(tmp_path), "--log-every", "5", "--checkpoint-every", "5"])
    names = {path.name for path in tmp_path.iterdir()}
    wanted = {"config.json", "model.safetensors", "checkpoints", "metrics.jsonl", "samples", "tensorboard", "curve.png"}
    assert names == wanted
    assert [path.name for path in checkpoints(tmp_path)] == ["step-15", "step-20"]  # the newest two
    assert json.loads((checkpoints(tmp_path)[-1] / "state.json").read_text())["step"] == 20
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    assert "bits_per_dim" in records[0]
    assert not list(tmp_path.rglob("*.tmp"))
    ema, raw = Run.open(tmp_path).load(), Run.open(tmp_path).load("raw")
    kept = weights_of(checkpoints(tmp_path)[-1], "ema.")
    assert kept.keys() == dict(ema.named_parameters()).keys()
    assert all(torch.equal(weight, kept[name]) for name, weight in ema.named_parameters())
    assert not torch.equal(ema.flow.blocks[0].positions, raw.flow.blocks[0].positions)
    with pytest.raises(InputError, match="weights is 'best'"):
        Run.open(tmp_path).load("best")


def test_a_pca_basis_is_fitted_once_and_kept(tmp_path):
    arguments = [*QUICK, "--model.patch-basis", "pca", "--out", str(tmp_path)]
    stop_after(5, arguments)
    before = Run.open(tmp_path).load().patchify.matrix.clone()
    assert not torch.equal(before, torch.eye(4))
    train.main([*arguments, "--resume"])
    assert torch.equal(Run.open(tmp_path).load().patchify.matrix, before)


def test_resuming_mends_weights_that_a_kill_left_behind(tmp_path):
    """Killed between the last checkpoint and model.safetensors: the folder must not keep the older weights."""
    arguments = [*QUICK, "--out", str(tmp_path)]
    train.main(arguments)
    last = (tmp_path / "model.safetensors").read_bytes()
    Run.open(tmp_path).load("raw").save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() != last
    train.main([*arguments, "--resume"])
    assert (tmp_path / "model.safetensors").read_bytes() == last


def test_metrics_after_the_checkpoint_are_written_once(tmp_path):
    stop_after(10, [*QUICK, "--out", str(tmp_path), "--log-every", "2"])
    with open(tmp_path / "metrics.jsonl", "a") as file:  # as if killed later, in the middle of a line
        file.write('{"step": 12, "bits_per_dim": 1.0}\n{"step": 14, "bi')
    train.main([*QUICK, "--out", str(tmp_path), "--log-every", "2", "--resume"])
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 21, 2))


def trainer_with_loss(tmp_path, loss, **changes):
    config = dataclasses.replace(PRESETS["tiny"], out=str(tmp_path), **changes)
    model = Farmer(config.model)

    def batches(start):
        for step in range(start, 10_000):
            yield Batch(step, torch.zeros(64, 1, 8, 8, dtype=torch.uint8), torch.zeros(64, dtype=torch.long))

    return Trainer(
        config,
        Path(config.out),
        model=model,
        average=MovingAverage(model, lambda: Farmer(config.model), decay=config.ema_decay),
        export=lambda: None,
        loss=lambda batch, progress, training: (loss(model, batch.step), {"loss": 0.0}),
        batches=batches,
        events=[],
    )


def test_a_step_with_a_non_finite_gradient_is_skipped_and_counted(tmp_path):
    def loss(model, step):
        return sum(p.square().sum() for p in model.parameters()) * (float("nan") if step in (3, 4) else 1.0)

    trainer = trainer_with_loss(tmp_path, loss, steps=6, checkpoint_every=1)
    assert trainer.train()
    assert (trainer.skipped, trainer.skipped_in_a_row) == (2, 0)
    state = json.loads((checkpoints(tmp_path)[-1] / "state.json").read_text())
    assert (state["step"], state["skipped"]) == (6, 2)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert trainer.optimiser.state[next(trainer.model.parameters())]["step"] == 4


def test_many_non_finite_steps_end_the_run_and_keep_the_checkpoint(tmp_path):
    def loss(model, step):
        return sum(p.square().sum() for p in model.parameters()) * (float("nan") if step >= 4 else 1.0)

    trainer = trainer_with_loss(tmp_path, loss, steps=100, checkpoint_every=2, max_skipped_steps=3)
    with pytest.raises(InputError, match="not finite for 3 steps in a row"):
        trainer.train()
    weights = weights_of(checkpoints(tmp_path)[-1], "model.")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_loss_that_is_not_finite_spoils_neither_log_nor_curve(tmp_path):
    def loss(model, step):
        return sum(p.square().sum() for p in model.parameters()) * float("nan")

    trainer = trainer_with_loss(tmp_path, loss, steps=3, log_every=1)
    trainer.loss = lambda batch, progress, training: (loss(trainer.model, 0), {"bits_per_dim": float("nan")})
    assert trainer.train()
    assert (trainer.skipped, trainer.step) == (3, 3)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    training_curve(tmp_path).savefig(tmp_path / "curve.png")


def test_schedule():
    config = TrainConfig(model=PRESETS["tiny"].model, learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10)
    assert learning_rate_at(config, step=0, progress=0.0) == pytest.approx(0.1)
    assert learning_rate_at(config, step=9, progress=0.0) == pytest.approx(1.0)
    assert learning_rate_at(config, step=500, progress=0.5) == pytest.approx(0.55)
    assert learning_rate_at(config, step=999, progress=1.0) == pytest.approx(0.1)


def test_max_minutes_fits_the_schedule(tmp_path):
    arguments = [*QUICK, "--out", str(tmp_path), "--steps", "100000", "--max-minutes", "0.05", "--log-every", "1"]
    train.main(arguments)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["seconds"] >= 3
    assert records[-1]["step"] < 100_000
    assert records[-1]["learning_rate"] < 0.01 * max(record["learning_rate"] for record in records)


def test_moving_average():
    source = torch.nn.Linear(2, 2)
    average = MovingAverage(source, lambda: torch.nn.Linear(2, 2), decay=0.9)
    target = average.module()
    start = target.weight.clone()
    assert torch.equal(start, source.weight)
    source.weight.data += 1
    average.update(step=0)
    assert torch.allclose(target.weight, start + 0.9)  # early on the average follows closely
    average.update(step=1000)
    assert torch.allclose(target.weight, start + 0.91)


def test_weight_decay_is_for_matrices():
    groups = make_optimiser(Farmer(PRESETS["tiny"].model), PRESETS["tiny"]).param_groups
    assert all(p.dim() >= 2 for p in groups[0]["params"])
    assert all(p.dim() < 2 for p in groups[1]["params"])
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (PRESETS["tiny"].weight_decay, 0)
    assert groups[0]["betas"] == (0.9, 0.95)


def test_noise_and_label_dropout_depend_on_seed_step_and_sample_only():
    values = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    labels = torch.arange(64) % 10
    dequantiser = Dequantiser("gaussian", 17, noise_start=0.1, noise_final=0.005)

    def drawn(batch, progress=0.0):
        return training_images(
            batch, dequantiser, seed=0, progress=progress, label_dropout=0.25, device=torch.device("cpu")
        )

    images, kept = drawn(Batch(7, values, labels))
    again, _ = drawn(Batch(7, values[:32], labels[:32]))
    later, _ = drawn(Batch(8, values, labels))
    end, _ = drawn(Batch(7, values, labels), progress=1.0)
    assert torch.equal(images[:32], again)
    assert not torch.equal(images, later)
    assert torch.allclose((images + 1) / 20, end + 1, atol=1e-6)  # noise of .1 and of .005
    assert images.std() == pytest.approx(0.1, rel=0.05)
    assert 0.1 < (kept == -1).double().mean() < 0.4
    assert torch.equal(kept[kept >= 0], labels[kept >= 0])


def test_unknown_device_is_named():
    with pytest.raises(InputError, match="device is 'abacus'"):
        resolve_device("abacus")


@pytest.mark.parametrize(
    ("set_by_torchrun", "device", "message"),
    [
        ({"WORLD_SIZE": "2"}, "cpu", "LOCAL_RANK is None; allowed: a number"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cuda:1", "device is 'cuda:1'; allowed: auto, cpu, cuda"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "2"}, "auto", "--nproc-per-node is '3 or more'; allowed: up to 2"),
    ],
)
def test_what_torchrun_decides_is_named(monkeypatch, set_by_torchrun, device, message):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in set_by_torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=message):
        join(device)


def test_under_torchrun_a_process_touches_its_own_gpu_only(monkeypatch):
    """Chosen before it is tried: what is made on "cuda" without a number would be on GPU 0."""
    done = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: done.append(f"choose {number}"))
    monkeypatch.setattr(torch, "empty", lambda *_, device: done.append(f"try {device}"))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: done.append(backend))
    assert join("cuda") == torch.device("cuda", 1)
    assert done == ["choose 1", "try cuda:1", "cpu:gloo,cuda:nccl"]


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
