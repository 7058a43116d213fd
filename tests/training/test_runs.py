"""A run folder: what is in it, and what resuming mends."""

import json
import shutil

import pytest
import torch
from helpers import QUICK, metrics, stop_after, weights_of
from PIL import Image

from farmer_ref import Farmer, InputError, train
from farmer_ref.data.sets import load_split
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.runs import Run


def test_run_folder(tmp_path):
    periods = ["--log-every", "5", "--checkpoint-every", "5", "--sample-every", "20"]
    train.main([*QUICK, "--out", str(tmp_path), *periods])
    names = {path.name for path in tmp_path.iterdir()}
    wanted = {"config.json", "model.safetensors", "checkpoints", "metrics.jsonl", "samples", "tensorboard", "curve.png"}
    assert names == wanted
    assert Image.open(tmp_path / "samples" / "step-0000020.png").size == (10 * 42 + 2, 4 * 42 + 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-15", "step-20"]  # the newest two
    assert json.loads((checkpoints(tmp_path)[-1] / "state.json").read_text())["step"] == 20
    records = metrics(tmp_path)
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


def test_a_preview_that_cannot_be_drawn_ends_no_run(tmp_path, monkeypatch, capsys):
    """A model that is out of hand for some steps may come back; a run's folder may hold dollar signs."""

    def failing(*_, **__):
        raise InputError("images are not finite; allowed: weights that give finite samples")

    monkeypatch.setattr(Farmer, "sample", failing)
    run = tmp_path / "of_$1_and_$2"
    train.main([*QUICK, "--out", str(run), "--sample-every", "10"])
    assert "no samples at step 10: images are not finite" in capsys.readouterr().err
    assert checkpoints(run)[-1].name == "step-20" and (run / "curve.png").exists()
    assert not list((run / "samples").glob("*.png"))


@pytest.mark.parametrize("pixels", ["linear", "histogram"])
def test_what_is_fitted_to_the_data_is_fitted_once_and_kept(tmp_path, pixels):
    fitted = ["--model.patch-basis", "pca", "--model.pixels", pixels]
    arguments = [*QUICK, *fitted, "--out", str(tmp_path)]
    stop_after(5, arguments)
    before = Run.open(tmp_path).load()
    assert not torch.equal(before.patchify.matrix, torch.eye(4))
    train.main([*arguments, "--resume"])
    after = Run.open(tmp_path).load()
    assert torch.equal(after.patchify.matrix, before.patchify.matrix)
    if pixels == "histogram":
        images = load_split("digits", "train", after.config).values
        assert torch.equal(after.pixels.counts[0], 1 + images.flatten().bincount(minlength=17))
        assert torch.equal(after.pixels.counts, before.pixels.counts)


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
    steps = [line["step"] for line in metrics(tmp_path)]
    assert steps == list(range(2, 21, 2))
