"""Sizes that cannot fit are refused before anything is allocated; values that are not finite are never shown."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import QUICK, fails_with_one_line
from safetensors.torch import load_file, save_file

from farmer_ref import apply, distill, evaluate, sample, train
from farmer_ref.data.sets import load_split
from farmer_ref.evaluation.classifier import sample_scores
from farmer_ref.evaluation.metrics import Moments, PixelClassifier, frechet_distance, sample_values
from farmer_ref.model.config import ModelConfig
from farmer_ref.model.pretrained import least_parameters
from farmer_ref.parameters import count
from farmer_ref.support import parallel
from farmer_ref.training import costs
from farmer_ref.training.presets import PRESETS

COMMANDS = [
    (sample.main, ["--rows", "1"]),
    (evaluate.main, ["--images", "5", "--draws", "1", "--samples", "10"]),
    (apply.main, ["classify", "--count", "2", "--draws", "1"]),
    (apply.main, ["anomaly", "--count", "2", "--reference", "10", "--draws", "1"]),
    (apply.main, ["inpaint", "--count", "1", "--samples", "1", "--moves", "1"]),
    (apply.main, ["edit", "--count", "1"]),
]


@pytest.fixture
def damaged(trained, tmp_path):
    """A copy of a trained model whose weights a function changes."""

    def copy(change):
        weights = load_file(trained / "model.safetensors")
        change(weights)
        shutil.copy(trained / "config.json", tmp_path / "config.json")
        save_file(weights, tmp_path / "model.safetensors")
        return tmp_path

    return copy


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
def test_weights_that_are_not_finite_are_named(capsys, damaged, command, arguments, value):
    def change(weights):
        weights["prior.positions"][0, 0] = value

    out = damaged(change) / "out.png"
    line = [*arguments[:1], "--run", damaged(change), "--out", out, *arguments[1:]]
    line = line if command is apply.main else ["--run", damaged(change), "--out", out, *arguments]
    fails_with_one_line(capsys, command, line, "values of prior.positions are not finite")
    assert not out.exists()


@pytest.fixture(scope="module")
def flipped(trained, tmp_path_factory):
    """A run and its student; one bit of one weight has changed in each since, which is still a finite number."""
    folder = tmp_path_factory.mktemp("flipped") / "run"
    shutil.copytree(trained, folder)
    distill.main(["--run", str(folder), *QUICK[2:], "--steps", "1"])
    for name in ("model.safetensors", "student.safetensors"):
        content = bytearray((folder / name).read_bytes())
        content[-2] ^= 1
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
def test_a_flipped_bit_is_noticed_by_every_command(capsys, flipped, tmp_path, command, arguments):
    out = tmp_path / "out.png"
    first = arguments[:1] if command is apply.main else []
    line = [*first, "--run", flipped, "--out", out, *arguments[len(first) :]]
    fails_with_one_line(capsys, command, line, "model.safetensors has changed since it was written")
    assert not out.exists()


def test_a_flipped_bit_is_noticed_by_distill_and_in_a_student(capsys, flipped, trained, tmp_path):
    fails_with_one_line(
        capsys, distill.main, ["--run", flipped, "--out", tmp_path / "new", *QUICK[2:]], "model.safetensors has changed"
    )
    (tmp_path / "run").mkdir()
    for source, name in ((trained, "config.json"), (trained, "model.safetensors"), (flipped, "student.safetensors")):
        shutil.copy(source / name, tmp_path / "run" / name)
    line = ["--run", tmp_path / "run", "--student", "--rows", "1", "--out", tmp_path / "a.png"]
    fails_with_one_line(capsys, sample.main, line, "student.safetensors has changed since it was written")


@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
def test_figures_that_are_not_finite_are_one_line(capsys, damaged, command, arguments):
    """Finite weights whose products are not."""

    def change(weights):
        for weight in weights.values():
            if weight.is_floating_point() and weight.dim() == 2:
                weight.fill_(1e30)

    run = damaged(change)
    out = run / "out.png"
    line = [*arguments[:1], "--run", run, "--out", out, *arguments[1:]]
    line = line if command is apply.main else ["--run", run, "--out", out, *arguments]
    fails_with_one_line(capsys, command, line, "finite")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--model.components", "1000000000"], "memory needed is"),
        (["--model.flow-width", str(2**40)], "memory needed is"),
        (["--model.prior-layers", "1000000000"], "model.prior_layers is 1000000000"),
        (["--model.flow-blocks", "50", "--model.flow-layers", "50", "--model.max-log-scale", "1"], "flow_layers is 50"),
        (["--batch-size", str(10**18)], "batch_size is"),
        (["--batch-size", "1000000", "--model.flow-width", "4096", "--model.tokens"][:4], "memory needed is"),
        (["--workers", str(10**9)], "workers is"),
        (["--learning-rate", "1e308"], "learning_rate is"),
        (["--weight-decay", "inf"], "weight_decay is"),
    ],
)
def test_training_that_cannot_fit_is_refused(capsys, tmp_path, arguments, part):
    fails_with_one_line(capsys, train.main, [*QUICK, "--out", tmp_path / "run", *arguments], part)
    assert not (tmp_path / "run").exists()


TEMPERATURES = ["redundant-temperature", "guidance.weight-temperature", "guidance.scale-temperature", "guidance.scale"]


@pytest.mark.parametrize("flag", TEMPERATURES)
@pytest.mark.parametrize("command", [sample.main, evaluate.main])
def test_a_temperature_that_float32_does_not_hold_is_refused(capsys, trained, command, flag):
    line = ["--run", trained, f"--{flag}", "1e308"]
    fails_with_one_line(capsys, command, line, f"{flag.replace('-', '_')} is 1e+308; allowed: ")


@pytest.mark.parametrize("main", [train.main, distill.main])
def test_a_run_folder_that_utf_8_cannot_express_is_refused(capsys, main):
    fails_with_one_line(capsys, main, ["--out", "\udcff"], "out is '\\udcff'", "UTF-8")


def test_a_config_that_asks_for_terabytes_is_refused(capsys, trained, tmp_path):
    shutil.copy(trained / "model.safetensors", tmp_path)
    for name, value, part in (
        ("components", 10**9, "asks for"),
        ("num_classes", 10**15, "asks for"),
        ("prior_width", 2**40, "memory needed is"),
        ("image_size", 2**30, "memory needed is"),
    ):
        saved = json.loads((trained / "config.json").read_text())
        saved["model"] |= {name: value, "class_names": []}
        saved.pop("training")
        (tmp_path / "config.json").write_text(json.dumps(saved))
        fails_with_one_line(capsys, sample.main, ["--run", tmp_path], part)


@pytest.mark.parametrize("name", PRESETS)
def test_the_least_parameters_are_nearly_all_of_them(name):
    model = PRESETS[name].model
    assert 0.95 < least_parameters(model) / count(model)["total"] <= 1


def test_the_least_parameters_are_never_more_than_all():
    for changes in ({"flow": "coupling"}, {"informative": 2}, {"num_classes": 0}, {"redundant_prior": "normal"}):
        config = ModelConfig(flow_width=64, prior_width=64, **changes)
        assert least_parameters(config) <= count(config)["total"]


def test_room_is_asked_for_before_it_is_taken(monkeypatch, capsys, trained, tmp_path):
    monkeypatch.setattr(costs, "memory_of", lambda device: 100_000)
    for command, line in (
        (train.main, [*QUICK, "--out", tmp_path / "run"]),
        (sample.main, ["--run", trained]),
        (distill.main, ["--run", trained, "--out", tmp_path / "student"]),
        (evaluate.main, ["--run", trained]),
    ):
        fails_with_one_line(capsys, command, line, "memory needed is")


def test_a_picture_needs_room_for_its_own_images_only(monkeypatch, capsys, digits, tmp_path):
    least = 4 * (digits.config.tokens * digits.config.prior_layers * digits.config.prior_width * 2 + 64)
    monkeypatch.setattr(costs, "memory_of", lambda device: 10 * least)
    sample.main(["--run", "digits", "--rows", "1", "--out", str(tmp_path / "a.png")])
    line = ["--run", "digits", "--rows", "2", "--out", tmp_path / "b.png"]
    fails_with_one_line(capsys, sample.main, line, "20 images at once")


def test_an_array_is_written_as_its_images_come(trained, tmp_path, monkeypatch):
    """What one call of `gather` holds does not grow with the count."""
    largest = []
    gather = parallel.gather
    monkeypatch.setattr(parallel, "gather", lambda value: largest.append(value) or gather(value))
    sample.main(["--run", str(trained), "--out", str(tmp_path / "a.npz"), "--count", "45", "--batch-size", "10"])
    assert max(len(value) for value in largest if torch.is_tensor(value)) == 10
    array = np.load(tmp_path / "a.npz")
    assert array["arr_0"].shape == (45, 8, 8, 3) and array["arr_1"].shape == (45,)


def test_the_figures_of_samples_are_those_of_all_at_once_and_their_memory_is_flat(digits, monkeypatch):
    classifier = PixelClassifier(load_split("digits", "train", digits.config))
    labels = torch.arange(45) % 10
    options = {"seed": 3, "batch_size": 10}
    seen, of = [], Moments.of

    def counted(features):
        seen.append(len(features))
        return of(features)

    monkeypatch.setattr(Moments, "of", counted)
    right, moments = sample_scores(classifier, digits, labels, **options)
    assert seen == [10, 10, 10, 10, 5]
    values = sample_values(digits, labels, **options)
    assert right == classifier.accuracy(values, labels)
    scores = classifier.scores(values)
    assert moments.count == 45 and moments.scatter.shape == (10, 10)
    torch.testing.assert_close(moments.covariance, torch.cov(scores.double().T), rtol=1e-12, atol=1e-12)
    other = scores.flip(1) + 1
    assert frechet_distance(moments, other) == pytest.approx(frechet_distance(scores, other), rel=1e-10)
    assert frechet_distance(moments, scores) < 1e-6


PEAK = """
import importlib, re, sys
from pathlib import Path
importlib.import_module(f"farmer_ref.{sys.argv[1]}").main(sys.argv[2:])
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts the largest memory of a process")
def test_memory_hardly_grows_with_the_number_of_samples(trained, tmp_path):
    """20,000 against 2,000: in an array, judged by a classifier, and as FID of that array."""
    environment = os.environ | {"TORCH_HOME": str(tmp_path), "PYTHONPATH": str(Path(train.__file__).parents[1])}

    def peak(*arguments):
        line = [sys.executable, "-c", PEAK, *map(str, arguments), "--run", str(trained), "--device", "cpu"]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.splitlines()[-1])

    peaks = []
    for samples in (2000, 20_000):
        drawn = peak("sample", "--count", samples, "--out", f"{samples}.npz")
        judged = peak("evaluate", "--samples", samples, "--draws", 1)
        compared = peak("evaluate", "--fid", "--extractor", "classifier", "--samples-from", f"{samples}.npz")
        peaks.append(torch.tensor([drawn, judged, compared]))
    assert (peaks[1] <= 1.1 * peaks[0]).all(), peaks


@pytest.mark.parametrize("name", ["data-root", "dataset"])
def test_a_text_that_config_json_cannot_hold_is_refused(capsys, tmp_path, name):
    line = [*QUICK, "--out", str(tmp_path / "run"), f"--{name}", "\udcff"]
    fails_with_one_line(capsys, train.main, line, f"{name.replace('-', '_')} is '\\udcff'", "UTF-8")
    assert not (tmp_path / "run").exists()
