"""Several processes are one: two gloo processes on the CPU, started by torchrun, against one."""

import json
import os
import signal
import subprocess

import numpy as np
import pytest
import torch
from helpers import assert_same, contents, ending, metrics, run_jobs, stop_after, torchrun, wait_until, weights_of

from farmer_ref import distill, evaluate, sample, train
from farmer_ref.support.files import read_weights
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.runs import Run

TRAIN = [
    *("--preset", "tiny", "--steps", "12", "--batch-size", "32", "--log-every", "1", "--checkpoint-every", "6"),
    *("--validate-every", "12", "--sample-every", "12", "--device", "cpu"),
    *("--model.dropout", "0.2", "--model.patch-basis", "pca", "--model.channel-mixing", "learned"),
]
FSDP = ["--parallel", "fsdp"]
BFLOAT16 = ["--precision", "bfloat16"]
PARTS = ["--accumulate", "2", "--checkpoint-activations"]
DISTILL = ["--steps", "3", "--batch-size", "32", "--sample-every", "3", "--device", "cpu"]
EVALUATE = ["--run", "digits", "--device", "cpu", "--images", "250", "--samples", "0", "--importance-weighted"]
SAMPLE = ["--run", "digits", "--device", "cpu", "--guidance", "1", "--count", "50", "--batch-size", "20"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training by one process and by two, uninterrupted, interrupted and resumed."""
    folder = tmp_path_factory.mktemp("distributed")

    def out(name):
        return ["--out", str(folder / name)]

    train.main([*TRAIN, *out("one")])
    train.main([*TRAIN, *BFLOAT16, *out("one in bfloat16")])
    stop_after(7, [*TRAIN, *out("one then fsdp")])
    stop_after(7, [*TRAIN, *out("one then ddp")])
    run_jobs(
        ("train", 0, [*TRAIN, *out("ddp")]),
        ("train", 0, [*TRAIN, *FSDP, *out("fsdp")]),
        ("train", 0, [*TRAIN, *BFLOAT16, *out("ddp in bfloat16")]),
        ("train", 0, [*TRAIN, *BFLOAT16, *FSDP, *out("fsdp in bfloat16")]),
        ("train", 0, [*TRAIN, *PARTS, *out("ddp in parts")]),
        ("train", 0, [*TRAIN, *PARTS, *FSDP, *out("fsdp in parts")]),
        ("train", 7, [*TRAIN, *out("ddp interrupted")]),
        ("train", 0, [*TRAIN, *out("ddp interrupted"), "--resume"]),
        ("train", 7, [*TRAIN, *FSDP, *out("fsdp interrupted")]),
        ("train", 0, [*TRAIN, *FSDP, *out("fsdp interrupted"), "--resume"]),
        ("train", 7, [*TRAIN, *FSDP, *out("fsdp then one")]),
        ("train", 7, [*TRAIN, *out("ddp then one")]),
        ("train", 0, [*TRAIN, *FSDP, *out("one then fsdp"), "--resume"]),
        ("train", 0, [*TRAIN, *out("one then ddp"), "--resume"]),
        ("distill", 0, [*DISTILL, "--run", str(folder / "one"), *out("two students")]),
        ("evaluate", 0, [*EVALUATE, "--out", str(folder / "two.json")]),
        ("sample", 0, [*SAMPLE, "--out", str(folder / "two.npz")]),
        ("sample", 0, [*SAMPLE, "--out", str(folder / "two")]),
    )
    for name in ("fsdp then one", "ddp then one"):
        assert checkpoints(folder / name)[-1].name == "step-7"
        train.main([*TRAIN, *out(name), "--resume"])
    return folder


def tensors(run):
    return {name: tensor.double() for name, tensor in read_weights(run / "model.safetensors").items()}


WAYS = ("ddp", "fsdp", "ddp in parts", "fsdp in parts")
CUT = ("ddp interrupted", "fsdp interrupted", "one then fsdp", "one then ddp", "fsdp then one", "ddp then one")


@pytest.mark.parametrize("name", [*WAYS, *CUT])
def test_two_processes_train_as_one(runs, name):
    """Loss, gradient norm and validation at every step, and the averaged weights at the end."""
    alone, together = metrics(runs / "one"), metrics(runs / name)
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    compared = ("nats_per_dim", "gradient_norm", "learning_rate", "validation_bits_per_dim")
    for wanted, line in zip(alone, together, strict=True):
        assert line.keys() == wanted.keys()
        for quantity in wanted.keys() & compared:
            assert line[quantity] == pytest.approx(wanted[quantity], rel=2e-5), (line["step"], quantity)
    one, two = tensors(runs / "one"), tensors(runs / name)
    assert one.keys() == two.keys()
    for weight in one:
        assert torch.allclose(one[weight], two[weight], atol=2e-5), weight


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_train_as_one_in_bfloat16(runs, name):
    """As the presets of the paper's models do. FSDP gathers the weights of layers in bfloat16, norms included."""
    alone, together = metrics(runs / "one in bfloat16"), metrics(runs / f"{name} in bfloat16")
    for wanted, line in zip(alone, together, strict=True):
        for quantity in wanted.keys() & {"nats_per_dim", "gradient_norm", "validation_bits_per_dim"}:
            assert line[quantity] == pytest.approx(wanted[quantity], rel=1e-2), (line["step"], quantity)


def test_the_comparison_notices_other_random_numbers(tmp_path, runs):
    train.main([*TRAIN, "--seed", "1", "--out", str(tmp_path)])
    wanted = [line["nats_per_dim"] for line in metrics(runs / "one") if "nats_per_dim" in line]
    other = [line["nats_per_dim"] for line in metrics(tmp_path) if "nats_per_dim" in line]
    assert other != pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_resumed_equals_uninterrupted_bit_for_bit(runs, name):
    whole, resumed = (checkpoints(runs / run)[-1] for run in (name, f"{name} interrupted"))
    assert whole.name == resumed.name == "step-12"
    assert_same(contents(whole), contents(resumed))
    assert_same(contents(runs / name), contents(runs / f"{name} interrupted"))


def test_fsdp_writes_each_process_s_part(runs):
    shards = contents(checkpoints(runs / "fsdp")[-1]).values()
    name = "exp_avg.flow.blocks.0.transformer.layers.0.mlp_in.weight"
    whole = weights_of(checkpoints(runs / "one")[-1], "")[name]
    parts = [shard[name] for shard in shards]
    assert len(parts) == 2
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)


def test_no_folder_holds_a_pickle(runs):
    known = {".safetensors", ".json", ".jsonl", ".png", ".npz"}
    for path in runs.rglob("*"):
        assert path.is_dir() or path.suffix in known or "tensorboard" in path.parts, path


def test_raw_weights_of_two_processes_are_read_by_one(runs):
    alone, together = (Run.open(runs / name).load("raw").state_dict() for name in ("one", "fsdp"))
    assert all(torch.allclose(alone[name].double(), together[name].double(), atol=2e-5) for name in alone)


def test_two_processes_evaluate_and_sample_as_one(runs):
    evaluate.main([*EVALUATE, "--out", str(runs / "one.json")])
    one, two = (json.loads((runs / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one.pop("command") != two.pop("command")
    assert one == two
    sample.main([*SAMPLE, "--out", str(runs / "one.npz")])
    with np.load(runs / "one.npz") as alone, np.load(runs / "two.npz") as together:
        assert np.array_equal(alone["arr_0"], together["arr_0"])
        assert np.array_equal(alone["arr_1"], together["arr_1"])
    assert len(list((runs / "two").glob("*.png"))) == 50


def test_two_processes_distil_as_one(runs):
    distill.main([*DISTILL, "--run", str(runs / "one"), "--out", str(runs / "one student")])
    one, two = (read_weights(runs / name / "student.safetensors") for name in ("one student", "two students"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[weight], two[weight], atol=2e-5) for weight in one)
    for name in ("config.json", "model.safetensors"):
        assert (runs / "two students" / name).read_bytes() == (runs / "one" / name).read_bytes()
    assert (runs / "two students" / "distillation" / "samples" / "step-0000003.png").exists()


def test_a_preempted_run_saves_and_goes_on(tmp_path):
    """SIGTERM to torchrun, as a cluster sends it, with a worker process reading the images of each process."""
    endless = [*TRAIN, "--steps", "1000000", "--workers", "1", "--checkpoint-every", "1000", "--out", str(tmp_path)]
    with ending(torchrun("-m", "farmer_ref.train", *endless)) as process:
        wait_until(lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) >= 3, process)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
    assert "interrupted at step" in printed
    newest = checkpoints(tmp_path)[-1]
    step = json.loads((newest / "state.json").read_text())["step"]
    assert step > 0 and newest.name == f"step-{step}"
    stop_after(step + 1, [*endless, "--resume"])
    assert checkpoints(tmp_path)[-1].name == f"step-{step + 1}"


def test_a_killed_process_ends_the_run_and_leaves_it_whole(tmp_path):
    endless = [*TRAIN, "--steps", "1000000", "--checkpoint-every", "2", "--out", str(tmp_path)]
    with ending(torchrun("-m", "farmer_ref.train", *endless)) as process:
        wait_until(lambda: len(checkpoints(tmp_path)) >= 2, process)
        children = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True)
        os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode != 0
    step = int(checkpoints(tmp_path)[-1].name.removeprefix("step-"))
    stop_after(step + 1, [*endless, "--resume"])


def test_what_does_not_divide_is_one_line(tmp_path):
    process = torchrun("-m", "farmer_ref.train", *TRAIN, "--batch-size", "33", "--out", str(tmp_path / "never"))
    _, problems = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "batch_size is 33; allowed: a multiple of 2 (2 processes, 1 parts each)" in problems
    assert not (tmp_path / "never").exists()
