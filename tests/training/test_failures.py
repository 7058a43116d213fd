"""What goes wrong on real machines: one clear line, and nothing that was written is lost."""

import multiprocessing
import os
import shutil
import signal
import subprocess

import pytest
from helpers import QUICK, assert_same, contents, fails_with_one_line, folder_of_images, stop_after

from farmer_ref import PRESETS, train
from farmer_ref.data.order import training_batches
from farmer_ref.data.sets import load_split
from farmer_ref.model.config import ModelConfig
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.runs import Run
from farmer_ref.training.trainer import Trainer


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder, leaving):
    """Leave so many bytes of a disk free."""
    free = shutil.disk_usage(folder).free
    (folder / "filler").write_bytes(bytes(max(0, free - leaving)))


@pytest.mark.parametrize("leaving", [0, 100_000, 600_000])
def test_a_full_disk_is_named_and_the_last_checkpoint_is_whole(capsys, small_disk, leaving):
    run = small_disk / "run"
    arguments = [*QUICK, "--checkpoint-every", "5", "--out", str(run)]
    stop_after(10, arguments)
    before = contents(checkpoints(run)[-1])
    fill(small_disk, leaving)
    capsys.readouterr()
    fails_with_one_line(capsys, train.main, [*arguments, "--resume"], str(run), "cannot be written")
    assert checkpoints(run)[-1].name == "step-10"
    assert_same(contents(checkpoints(run)[-1]), before)
    Run.open(run).load()
    (small_disk / "filler").unlink()
    train.main([*arguments, "--resume"])
    assert checkpoints(run)[-1].name == "step-20"


def test_a_disk_too_small_for_a_run(capsys, small_disk):
    fill(small_disk, 20_000)
    fails_with_one_line(capsys, train.main, [*QUICK, "--out", str(small_disk / "run")], "cannot be written")


def test_a_killed_reader_is_one_line_and_the_run_goes_on(capsys, tmp_path, monkeypatch):
    """As the kernel kills a process where memory is short."""
    images = folder_of_images(tmp_path / "images", count=60)
    run = tmp_path / "run"
    arguments = [
        *QUICK,
        "--dataset",
        images,
        "--model.image-size",
        "16",
        "--model.channels",
        "3",
        "--model.levels",
        "256",
        "--model.num-classes",
        "2",
    ]
    arguments += ["--batch-size", "8", "--out", str(run), "--checkpoint-every", "3"]
    optimise = Trainer._optimise

    def killing(trainer, batch):
        if trainer.step == 4:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
        return optimise(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_optimise", killing)
        fails_with_one_line(capsys, train.main, [*arguments, "--workers", "1"], "workers is 1, and one was killed")
    assert checkpoints(run)[-1].name == "step-3"
    train.main([*arguments, "--resume"])
    assert checkpoints(run)[-1].name == "step-20"


def test_readers_end_with_their_loader(tmp_path):
    data = load_split(folder_of_images(tmp_path, count=60), "train", ModelConfig(image_size=16, channels=3))
    stream = training_batches(data, 8, seed=0, start=0, workers=2)
    next(stream)
    readers = multiprocessing.active_children()
    assert len(readers) == 2
    stream.close()
    for reader in readers:
        reader.join(5)
        assert not reader.is_alive()


@pytest.mark.parametrize("damage", ["cut", "flipped header", "missing", "of another model"])
def test_a_damaged_shard_is_named(capsys, tmp_path, damage):
    run, other = tmp_path / "run", tmp_path / "other"
    arguments = [*QUICK, "--checkpoint-every", "10", "--out", str(run)]
    train.main(arguments)
    newest = checkpoints(run)[-1]
    (shard,) = newest.glob("*.safetensors")
    whole, before = shard.read_bytes(), contents(newest)
    shard.unlink()  # a new file: the tensors in memory are those of the old one
    if damage == "cut":
        shard.write_bytes(whole[:-1000])
    elif damage == "flipped header":
        shard.write_bytes(whole[:40] + bytes([whole[40] ^ 255]) + whole[41:])
    elif damage == "of another model":
        train.main([*QUICK, "--model.components", "5", "--out", str(other)])
        shutil.copy(next(checkpoints(other)[-1].glob("*.safetensors")), shard)
    capsys.readouterr()
    fails_with_one_line(capsys, train.main, [*arguments, "--resume"], str(newest), f"delete {newest} to resume from")
    shutil.rmtree(newest)
    train.main([*arguments, "--resume"])
    assert_same(contents(checkpoints(run)[-1]), before)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["--model.components", "5"], "model.components is 5; allowed: 4, as in the run that is resumed"),
        (["--batch-size", "32"], "batch_size is 32; allowed: 64"),
        (["--seed", "3"], "seed is 3; allowed: 0"),
    ],
)
def test_a_resumed_run_refuses_to_become_another(capsys, tmp_path, changes, part):
    arguments = [*QUICK, "--out", str(tmp_path)]
    stop_after(5, arguments)
    before = contents(checkpoints(tmp_path)[-1])
    capsys.readouterr()
    fails_with_one_line(capsys, train.main, [*arguments, *changes, "--resume"], part)
    assert_same(contents(checkpoints(tmp_path)[-1]), before)


def test_a_loader_that_fails_otherwise_is_not_hidden(monkeypatch):
    data = load_split("digits", "validation", PRESETS["tiny"].model)

    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(type(data), "__getitem__", broken)
    with pytest.raises(RuntimeError, match="^broken$"):
        next(iter(training_batches(data, 8, seed=0, start=0)))
