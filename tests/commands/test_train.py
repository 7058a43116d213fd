"""`train` as a user runs it: one clear line for bad input, and no run overwritten."""

import dataclasses
import json
import shutil

import pytest
import torch
from helpers import QUICK, fails_with_one_line, folder_of_images

from farmer_ref import PRESETS, train
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.runs import Run, saved_settings

real = Run.open


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--preset", "digit"], ["preset is 'digit'", "digits-noise"]),
        (["--preset", "tiny", "--model.patch-size", "3"], ["patch_size is 3", "a divisor of image_size (8)"]),
        (["--preset", "tiny", "--model.informative", "4"], ["informative is 4", "1 to 3"]),
        (["--preset", "tiny", "--model.max-log-scale", "50"], ["max_log_scale is 50.0", "at most 40"]),
        (["--preset", "tiny", "--model.num-classes", "4"], ["model.num_classes is 4", "10 or more"]),
        (["--preset", "tiny", "--model.num-classes", "12"], ["model.num_classes is 12; allowed: 10, the classes of"]),
        (["--preset", "tiny", "--dataset", "folder:none"], ["'folder:none'", "none is not a folder"]),
        (["--preset", "tiny", "--dataset", "mnist", "--no-download"], ["data_root is 'data'", "no complete mnist"]),
        (["--preset", "tiny", "--device", "abacus"], ["device is 'abacus'", "auto, cpu, cuda"]),
        (["--preset", "tiny", "--steps", "0"], ["steps is 0", "1 or more"]),
    ],
)
def test_train_refuses(capsys, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    fails_with_one_line(capsys, train.main, arguments, *parts)
    assert not list(tmp_path.iterdir())  # and leaves nothing behind


def test_train_refuses_an_unreadable_image(capsys, tmp_path):
    name = folder_of_images(tmp_path / "images")
    for path in (tmp_path / "images" / "cat").glob("*.png"):
        path.write_bytes(b"not an image")
    size = ["--model.image-size", "16", "--model.channels", "3", "--model.levels", "256", "--model.patch-size", "4"]
    arguments = [*QUICK, *size, "--model.num-classes", "2", "--dataset", name, "--out", tmp_path / "run"]
    fails_with_one_line(capsys, train.main, arguments, "cannot be read", "allowed: an intact image file")


def test_train_refuses_a_folder_without_classes(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = [*QUICK, "--dataset", f"folder:{tmp_path / 'empty'}", "--out", tmp_path / "run"]
    fails_with_one_line(capsys, train.main, arguments, "holds no class folders with images")


def test_train_does_not_overwrite_a_run(capsys, trained):
    before = (trained / "model.safetensors").read_bytes()
    fails_with_one_line(capsys, train.main, [*QUICK, "--out", trained], "holds a run already", "--resume")
    other = [*QUICK, "--out", trained, "--resume", "--model.prior-width", "64"]
    fails_with_one_line(capsys, train.main, other, "model.prior_width is 64", "allowed: 32")
    other = [*QUICK, "--out", trained, "--resume", "--seed", "7"]
    fails_with_one_line(capsys, train.main, other, "seed is 7", "allowed: 0, as in the run that is resumed")
    assert (trained / "model.safetensors").read_bytes() == before


def test_train_does_not_overwrite_weights_without_checkpoints(capsys, trained, tmp_path):
    Run.open(trained).load().save_pretrained(tmp_path / "exported")
    shutil.copytree(trained, tmp_path / "pruned", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(tmp_path / "exported", tmp_path / "distilled")
    (tmp_path / "distilled" / "config.json").write_bytes((trained / "config.json").read_bytes())
    (tmp_path / "distilled" / "distillation").mkdir()  # a teacher's copy, without metrics of its own
    for name in ("exported", "pruned", "distilled"):
        for more in ([], ["--resume"]):
            settings_alone = name == "exported" and more  # nothing says how it was trained
            part = "holds a model and no run" if settings_alone else "holds trained weights without checkpoints"
            fails_with_one_line(capsys, train.main, [*QUICK, "--out", tmp_path / name, *more], part)
        assert (tmp_path / name / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_train_does_not_overwrite_files_of_something_else(capsys, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    arguments = [*QUICK, "--out", tmp_path]
    fails_with_one_line(capsys, train.main, arguments, "holds a config.json of something else; allowed: a new folder")
    assert (tmp_path / "config.json").read_text() == "{}"
    monkeypatch.chdir(tmp_path)
    fails_with_one_line(capsys, train.main, [*QUICK, "--out", ""], "out is ''; allowed: a folder")


def test_a_run_that_has_moved_goes_on_where_it_is(capsys, trained, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    before = checkpoints(trained)
    train.main(["--out", str(moved), "--resume", "--steps", "22"])
    assert checkpoints(moved)[-1].name == "step-22" and checkpoints(trained) == before
    assert saved_settings(moved).out == str(moved)


def test_a_run_records_the_commit_that_it_starts_from(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "pinned", lambda name: f"{name.partition('@')[0]}@0123")
    opened = []
    monkeypatch.setattr(Run, "open", lambda name: opened.append(name) or real("digits"))
    assert train.settings(["--init-from", "owner/name@main"]).init_from == "owner/name@0123"
    assert opened == ["owner/name@0123"]
    saved = dataclasses.replace(PRESETS["digits"], init_from="owner/name@0123")
    monkeypatch.setattr(train, "saved_settings", lambda folder: saved)
    (tmp_path / "config.json").write_text("{}")
    resumed = ["--resume", "--out", str(tmp_path)]
    for given, kept in (([], "owner/name@0123"), (["owner/name"], "owner/name@0123"), (["digits"], "digits")):
        assert train.settings([*resumed, *(["--init-from", *given] if given else [])]).init_from == kept


def test_a_finished_run_stays_as_it_is(capsys, trained):
    train.main(["--out", str(trained), "--resume"])  # the run's own settings are the defaults
    assert "finished at step 20" in capsys.readouterr().out


def test_resuming_where_there_is_no_run_is_said(capsys, tmp_path):
    """A mistyped folder is no run: a new one begins there, as the first job of a queue needs it, and not in silence."""
    train.main([*QUICK, "--steps", "1", "--out", str(tmp_path / "mistyped"), "--resume"])
    assert "no checkpoint to resume: a new run begins, of the preset tiny" in capsys.readouterr().err


def test_a_run_starts_from_a_trained_model(capsys, tmp_path):
    """Its averaged weights and its histogram, and its settings before those of the preset; further training moves them.

    A learning rate that rounds away leaves the weights as they were, which random ones would not be.
    """
    run = ["--preset", "tiny", "--init-from", "digits", "--threads", "1", "--steps", "1", "--warmup-steps", "0"]
    still = ["--learning-rate", "1e-30", "--final-learning-rate", "0", "--weight-decay", "0", "--sample-every", "0"]
    train.main([*run, *still, "--out", str(tmp_path / "still")])
    digits, begun = Run.open("digits").load(), Run.open(tmp_path / "still").load()
    assert begun.config == digits.config
    assert all(torch.equal(weight, begun.state_dict()[name]) for name, weight in digits.state_dict().items())
    train.main([*run, *still, "--model.noise-width", "4", "--out", str(tmp_path / "noisy")])
    noisy, images = Run.open(tmp_path / "noisy").load(), torch.rand(2, 1, 8, 8) * 2 - 1
    assert noisy.config.noise_width == 4 and torch.allclose(noisy.log_prob(images), digits.log_prob(images), atol=0.01)
    train.main([*run, "--sample-every", "0", "--out", str(tmp_path / "moved")])
    moved = Run.open(tmp_path / "moved").load()
    assert not torch.equal(moved.prior.positions, digits.prior.positions)
    capsys.readouterr()
    resumed = ["--out", tmp_path / "moved", "--resume", "--init-from", "digits-noise"]
    fails_with_one_line(capsys, train.main, resumed, "init_from is 'digits-noise'; allowed: 'digits'")


def test_another_model_than_the_one_to_start_from_is_refused(capsys, tmp_path):
    run = ["--preset", "tiny", "--out", tmp_path / "run", "--init-from"]
    fails_with_one_line(capsys, train.main, [*run, "none"], "'none'", "allowed")
    wider = [*run, "digits", "--model.prior-width", "128", "--model.dropout", "0.3"]
    fails_with_one_line(capsys, train.main, wider, "model.prior_width is 128; allowed: 64, as in digits")
    fails_with_one_line(capsys, train.main, [*run, "mnist"], "image_size is 28")
    fails_with_one_line(capsys, train.main, run, "init_from cannot be parsed", "--init-from VALUE")


@pytest.mark.parametrize("name", ["shard-00001-model-00001-of-00001.safetensors", "state.json"])
def test_a_truncated_checkpoint_is_named(capsys, trained, name):
    path = checkpoints(trained)[-1] / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        fails_with_one_line(
            capsys, train.main, ["--out", trained, "--resume"], str(path), f"delete {path.parent} to resume from"
        )
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", [{"steps": "many"}, {"wings": 2}])
def test_a_damaged_run_configuration_is_named(capsys, trained, tmp_path, damage):
    shutil.copytree(trained, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["training"] |= damage
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    fails_with_one_line(capsys, train.main, ["--out", tmp_path / "run", "--resume"], "config.json: ", "training.")
