"""`evaluate`: figures printed and written, and what cannot be evaluated."""

import json
from dataclasses import replace

import pytest
from helpers import QUICK, fails_with_one_line, folder_of_images
from PIL import Image

from farmer_ref import PRESETS, Farmer, InputError, evaluate, train
from farmer_ref.data.sets import load_split
from farmer_ref.evaluation.metrics import evaluate_likelihood
from farmer_ref.training.runs import Run


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--split", "all"], ["split is 'all'", "train, validation, test"]),
        (["--dataset", "cifar10", "--no-download"], ["no complete cifar10"]),
        (["--draws", "0"], ["draws is 0"]),
        (["--samples", "1"], ["samples is 1", "0, or 2 or more"]),
        (["--images", "1"], ["images is 1", "2 or more"]),
        (["--extractor", "classifier"], ["extractor is 'classifier', without fid; allowed: with --fid"]),
        (["--fid", "--draws", "2"], ["draws is 2, with fid; allowed: without it"]),
        (["--fid", "--importance-weighted"], ["importance_weighted is True, with fid"]),
        (["--fid", "--samples-from", "a.npz", "--redundant-temperature", "2"], ["with samples to draw"]),
        (["--fid", "--samples-from", "a.npz", "--guidance", "2"], ["guidance is 2.0", "the run's own"]),
    ],
)
def test_evaluate_refuses(capsys, trained, tmp_path, arguments, parts):
    fails_with_one_line(capsys, evaluate.main, ["--run", trained, "--data-root", tmp_path, *arguments], *parts)


def test_evaluate_refuses_to_have_samples_read_that_cannot_be(capsys, tmp_path, monkeypatch):
    Farmer(replace(PRESETS["tiny"].model, num_classes=0)).save_pretrained(tmp_path)
    line = ["--dataset", "digits", "--device", "cpu", "--images", 4, "--draws", 1, "--run"]
    for arguments, part in ((["--samples", 20], "samples is 20; allowed: 0"), (["--student"], "student is True")):
        fails_with_one_line(capsys, evaluate.main, [*line, tmp_path, *arguments], part)
    evaluate.main([*map(str, line), str(tmp_path)])
    assert "accuracy on" not in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "CLASSIFIED_DIMENSIONS", 63)  # a digit has 64
    fails_with_one_line(capsys, evaluate.main, [*line, "digits", "--student"], "student is True", "--samples N")


def test_a_split_of_one_image_is_refused(capsys, tmp_path):
    for split, count in (("train", 5), ("val", 2), ("test", 1)):
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8)).save(tmp_path / "images" / split / "a" / f"{i}.png")
    size = ["--model.levels", "256", "--model.num-classes", "1", "--dataset", f"folder:{tmp_path / 'images'}"]
    train.main([*QUICK, *size, "--out", str(tmp_path / "run")])
    capsys.readouterr()
    fails_with_one_line(capsys, evaluate.main, ["--run", tmp_path / "run"], "split is 'test', of 1 image")
    arguments = ["--run", tmp_path / "run", "--split", "train"]
    fails_with_one_line(capsys, evaluate.main, arguments, "of one class", "samples 0")


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_evaluate_prints_and_writes_its_figures(capsys, trained, tmp_path, weights):
    out = tmp_path / "figures.json"
    arguments = [
        "--run",
        str(trained),
        "--weights",
        weights,
        "--draws",
        "2",
        "--samples",
        "50",
        "--importance-weighted",
    ]
    evaluate.main([*arguments, "--out", str(out)])
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    model = Run.open(trained).load(weights)
    wanted = evaluate_likelihood(model, load_split("digits", "test", model.config), draws=2).bits_per_dim
    assert figures["bits_per_dim"] == pytest.approx(wanted, abs=1e-6)
    assert figures["images"] == 300
    assert {"command", "commit", "date", "device"} <= figures.keys()
    assert f"{figures['bits_per_dim']:.4f} bits/dim" in printed
    assert f"{figures['importance_weighted_bits_per_dim']:.4f} bits/dim, importance-weighted" in printed
    assert "informative" in printed
    assert "log-det" in printed


def test_evaluate_on_a_folder_of_two_classes(tmp_path):
    name = folder_of_images(tmp_path / "images", count=40)
    size = ["--model.image-size", "16", "--model.channels", "3", "--model.levels", "256", "--model.patch-size", "4"]
    size += ["--model.num-classes", "2"]
    mixed = ["--model.patch-basis", "pca", "--model.channel-mixing", "learned", "--precision", "bfloat16"]
    train.main([*QUICK, *size, *mixed, "--dataset", name, "--out", str(tmp_path / "run")])
    evaluate.main(["--run", str(tmp_path / "run"), "--samples", "20", "--out", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0 <= figures["sample_accuracy"] <= 1
    assert figures["bits_per_dim"] > 0


@pytest.mark.parametrize(
    ("arguments", "images"),
    [
        (["--samples", "0", "--images", "50"], 50),
        (["--samples", "0"], 100),
        (["--images", "50"], 100),
        (["--samples", "30", "--images", "20"], 30),
        (["--batch-size", "50000"], 50_000),
    ],
)
def test_memory_is_asked_for_what_is_scored_or_drawn_at_once(trained, monkeypatch, arguments, images):
    asked = []

    def refuse(config, device, *, images):
        asked.append(images)
        raise InputError("enough")

    monkeypatch.setattr(evaluate, "require_room", refuse)
    with pytest.raises(InputError, match="enough"):
        evaluate.main(["--run", str(trained), *arguments])
    assert asked == [images]
