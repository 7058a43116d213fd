"""`sample`: grids, arrays and folders, the same images in each."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers import draw, fails_with_one_line
from PIL import Image

from farmer_ref import PRESETS, Farmer, Guidance, InputError, OneStepStudent, evaluate, sample


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--labels", "3", "12"], ["label is 12", "0 to 9, or -1"]),
        (["--rows", "0"], ["rows is 0"]),
        (["--out", "grid.jpg"], ["out is 'grid.jpg'", ".png or .npz, or a folder"]),
        (["--guidance", "inf"], ["guidance.scale is inf", "a finite number"]),
        (["--count", "0"], ["count is 0"]),
        (["--batch-size", "0"], ["batch_size is 0"]),
        (["--guidance", "-1"], ["guidance.scale is -1.0", "0 to 1,000,000"]),
        (["--guidance.candidates-conditional", "0"], ["guidance.candidates_conditional is 0"]),
        (["--redundant-temperature", "-0.1"], ["redundant_temperature is -0.1"]),
        (["--student", "--method", "jacobi"], ["method is 'jacobi', with a student"]),
        (["--denoise"], ["denoise is True with uniform dequantisation"]),
        (["--weights", "best"], ["weights is 'best'", "ema, raw"]),
    ],
)
def test_sample_refuses(capsys, trained, arguments, parts):
    fails_with_one_line(capsys, sample.main, ["--run", trained, *arguments], *parts)


def test_a_model_without_labels_has_no_columns_of_classes(capsys, tmp_path):
    Farmer(replace(PRESETS["tiny"].model, num_classes=0)).save_pretrained(tmp_path / "model")
    draw(tmp_path / "model", tmp_path / "grid.png", "--rows", 1)
    assert "10 samples of" in (printed := capsys.readouterr().out)
    assert "without labels" in printed and "columns" not in printed


def test_truncated_weights_are_named(capsys, trained, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    fails_with_one_line(capsys, sample.main, ["--run", tmp_path], f"{path} cannot be read")


def test_sample_writes_a_class_ordered_grid(trained, tmp_path):
    sample.main(
        ["--run", str(trained), "--out", str(tmp_path / "a" / "grid.png"), "--labels", "3", "-1", "--rows", "4"]
    )
    picture = Image.open(tmp_path / "a" / "grid.png")
    assert picture.size == (2 * 42 + 2, 4 * 42 + 2)  # two columns of four, each pixel five wide
    assert picture.mode == "L"


def test_sample_writes_an_array_for_evaluators(trained, tmp_path):
    draw(trained, tmp_path / "a.npz", "--count", 25, "--batch-size", 10)
    array = np.load(tmp_path / "a.npz")
    assert array["arr_0"].shape == (25, 8, 8, 3) and array["arr_0"].dtype == np.uint8
    assert array["arr_1"].tolist() == [k % 10 for k in range(25)]
    assert (array["arr_0"][..., 0] == array["arr_0"][..., 2]).all()  # grey
    assert set(np.unique(array["arr_0"])) <= {round(255 * v / 16) for v in range(17)}  # the model's 17 levels


def test_the_same_seed_gives_the_same_images_in_every_form(trained, tmp_path):
    arguments = ["--guidance", 1.5, "--batch-size", 10, "--seed", 3]
    draw(trained, tmp_path / "a.npz", "--count", 25, *arguments)
    draw(trained, tmp_path / "folder", "--count", 25, *arguments)
    draw(trained, tmp_path / "b.npz", "--count", 25, *arguments[:-1], 4)
    array, other = (np.load(tmp_path / name)["arr_0"] for name in ("a.npz", "b.npz"))
    files = sorted((tmp_path / "folder").glob("*.png"))
    assert [path.name for path in files[:2]] == ["000000_class0.png", "000001_class1.png"]
    assert (np.stack([np.asarray(Image.open(path)) for path in files]) == array[..., 0]).all()
    assert (array != other).any()


def test_a_folder_of_samples_goes_on_where_it_was_cut_off(capsys, trained, tmp_path):
    arguments = ["--batch-size", 10, "--labels", 4, -1]
    draw(trained, tmp_path / "whole", "--count", 25, *arguments)
    draw(trained, tmp_path / "cut", "--count", 15, *arguments)
    (tmp_path / "cut" / "000002_class4.png").unlink()
    capsys.readouterr()
    draw(trained, tmp_path / "cut", "--count", 25, *arguments)
    assert "25 samples" in (printed := capsys.readouterr().out) and "11 of them drawn now" in printed
    whole, cut = ({p.name: p.read_bytes() for p in (tmp_path / name).glob("*.png")} for name in ("whole", "cut"))
    assert whole == cut and len(whole) == 25
    assert {"000003.png", "000024_class4.png"} <= whole.keys()
    other = ["--run", trained, "--out", tmp_path / "cut", *arguments, "--seed", 1]
    fails_with_one_line(capsys, sample.main, other, "seed is 1; allowed: 0, with which the images in")
    (tmp_path / "cut" / "samples.json").write_text("{")
    other = ["--run", trained, "--out", tmp_path / "cut", *arguments]
    fails_with_one_line(capsys, sample.main, other, "samples.json: content is not JSON")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    other = ["--run", trained, "--out", tmp_path / "mine"]
    fails_with_one_line(capsys, sample.main, other, "a folder that holds other things")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_folder_without_images_takes_the_corrected_command(capsys, trained, tmp_path):
    line = ["--run", trained, "--out", tmp_path / "folder", "--device", "cpu", "--count", 5]
    fails_with_one_line(capsys, sample.main, [*line, "--denoise"], "denoise is True")
    draw(trained, tmp_path / "folder", "--count", 5)
    assert "5 of them drawn now" in capsys.readouterr().out
    fails_with_one_line(capsys, sample.main, [*line, "--seed", 1], "seed is 1; allowed: 0")


def test_the_first_process_alone_makes_a_folder_of_samples(trained, tmp_path, monkeypatch):
    """Another one finds it made: two that wrote one file at once would take its temporary file from each other."""
    monkeypatch.setattr(sample, "note_settings", lambda *_: pytest.fail("another process writes, too"))
    monkeypatch.setattr("farmer_ref.support.parallel.rank", lambda: 1)
    draw(trained, tmp_path, "--count", 5)


def test_where_one_process_cannot_draw_all_end(trained, tmp_path, monkeypatch):
    """Also the one that writes: it must not wait for images that never come, nor keep an array without them."""
    other = sample.NotDrawn("label is 12; allowed: another")
    monkeypatch.setattr("farmer_ref.support.parallel.gather", lambda mine: [mine, other])
    with pytest.raises(sample.NotDrawn, match="label is 12"):
        draw(trained, tmp_path / "a.npz", "--count", 5)
    assert not list(tmp_path.iterdir())
    told = []
    monkeypatch.setattr("farmer_ref.support.parallel.gather", lambda mine: told.append(mine) or [mine])
    with pytest.raises(InputError, match="label is 12"):  # here itself: the others are told
        draw(trained, tmp_path / "a.npz", "--count", 5, "--labels", 12)
    assert isinstance(told[0], sample.NotDrawn)


def test_sample_takes_the_run_s_own_guidance(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["training"]["guidance"] |= {"scale": 2.5, "scoring_weight_temperature": 0.2}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert sample.settings(["--run", str(tmp_path / "run")]).guidance.scale == 2.5
    changed = sample.settings(["--run", str(tmp_path / "run"), "--guidance", "1"]).guidance
    assert (changed.scale, changed.scoring_weight_temperature) == (1.0, 0.2)
    del config["training"]["guidance"]  # as in a run of an older version
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert sample.settings(["--run", str(tmp_path / "run")]).guidance == Guidance()


def test_what_is_asked_for_reaches_the_model(monkeypatch, tmp_path):
    asked, drawn = [], Farmer.sample

    def noted(model, labels, guidance, **options):
        asked.append({**options, "guidance": guidance})
        return drawn(model, labels, guidance, **options)

    monkeypatch.setattr(Farmer, "sample", noted)
    few = ["--count", 5, "--batch-size", 5]
    ways = ["--student", "--guidance", "1", "--redundant-temperature", "0.5"]
    draw("digits", tmp_path / "a.npz", *few, *ways)
    scored = ["--run", "digits", "--device", "cpu", "--samples", "20", "--images", "20", "--draws", "1"]
    evaluate.main([*scored, *ways])
    assert len(asked) == 2
    for one in asked:
        assert isinstance(one["student"], OneStepStudent)
        assert (one["guidance"].scale, one["redundant_temperature"]) == (1, 0.5)
    draw("digits", tmp_path / "b.npz", *few, "--method", "jacobi")
    draw("digits-noise", tmp_path / "c.npz", *few, "--denoise")
    assert asked[-2]["method"] == "jacobi" and asked[-1]["denoise"]
