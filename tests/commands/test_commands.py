"""The commands as a user runs them: one clear line and exit code 2 for bad input, help that reads well."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers import QUICK, draw, fails_with_one_line, folder_of_images
from PIL import Image

from farmer_ref import PRESETS, Farmer, Guidance, apply, evaluate, parameters, sample, train
from farmer_ref.data.sets import load_split
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.runs import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train.main([*QUICK, "--out", str(folder)])
    return folder


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--preset", "digit"], ["preset is 'digit'", "digits-noise"]),
        (["--preset", "tiny", "--model.patch-size", "3"], ["patch_size is 3", "a divisor of image_size (8)"]),
        (["--preset", "tiny", "--model.informative", "4"], ["informative is 4", "1 to 3"]),
        (["--preset", "tiny", "--model.max-log-scale", "50"], ["max_log_scale is 50.0", "at most 40"]),
        (["--preset", "tiny", "--model.num-classes", "4"], ["model.num_classes is 4", "10 or more"]),
        (["--preset", "tiny", "--dataset", "folder:none"], ["'folder:none'", "none is no folder"]),
        (["--preset", "tiny", "--dataset", "mnist", "--no-download"], ["data_root is 'data'", "no whole mnist"]),
        (["--preset", "tiny", "--device", "abacus"], ["device is 'abacus'", "auto, cpu, cuda"]),
        (["--preset", "tiny", "--steps", "0"], ["steps is 0", "1 or more"]),
    ],
)
def test_train_refuses(capsys, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    fails_with_one_line(capsys, train.main, arguments, *parts)
    assert not list(tmp_path.iterdir())  # and leaves nothing behind


def test_train_refuses_an_unreadable_image(capsys, tmp_path):
    name = folder_of_images(tmp_path / "images", count=30)
    for path in (tmp_path / "images" / "cat").glob("*.png"):
        path.write_bytes(b"not an image")
    size = ["--model.image-size", "16", "--model.channels", "3", "--model.levels", "256", "--model.patch-size", "4"]
    arguments = [*QUICK, *size, "--dataset", name, "--out", tmp_path / "run"]
    fails_with_one_line(capsys, train.main, arguments, "cannot be read", "allowed: a whole image file")


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
        arguments = [*QUICK, "--out", tmp_path / name, "--resume"]
        fails_with_one_line(capsys, train.main, arguments, "", "allowed: a")
        assert (tmp_path / name / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_a_finished_run_stays_as_it_is(capsys, trained):
    train.main(["--out", str(trained), "--resume"])  # the run's own settings are the defaults
    assert "finished at step 20" in capsys.readouterr().out


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


@pytest.mark.parametrize("command", [sample.main, evaluate.main])
def test_a_folder_that_is_no_run_is_named(capsys, tmp_path, command):
    fails_with_one_line(capsys, command, ["--run", tmp_path], str(tmp_path), "a run folder, or one of")


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
        (["--denoise"], ["denoise is asked of a model with uniform dequantisation"]),
        (["--weights", "best"], ["weights is 'best'", "ema, raw"]),
    ],
)
def test_sample_refuses(capsys, trained, arguments, parts):
    fails_with_one_line(capsys, sample.main, ["--run", trained, *arguments], *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--split", "all"], ["split is 'all'", "train, validation, test"]),
        (["--dataset", "cifar10", "--no-download"], ["no whole cifar10"]),
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
    assert "read as their class" not in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "READABLE_DIMENSIONS", 63)  # a digit has 64
    fails_with_one_line(capsys, evaluate.main, [*line, "digits", "--student"], "student is True", "--samples N")


def test_outputs_that_cannot_be_written_are_named_before_the_work(capsys, trained, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    run = ["--run", trained, "--out"]
    fails_with_one_line(capsys, sample.main, [*run, tmp_path / "file" / "a.png"], "whose folder cannot be made")
    fails_with_one_line(capsys, sample.main, [*run, tmp_path / "folder.png"], "which is a folder")
    fails_with_one_line(capsys, evaluate.main, [*run, tmp_path], "which is a folder")
    fails_with_one_line(capsys, train.main, [*QUICK, "--out", tmp_path / "file" / "run"], "cannot be made")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (evaluate.main, ["--images", "5", "--draws", "1", "--samples", "0"]),
        (apply.main, ["anomaly", "--count", "2", "--reference", "10", "--draws", "1"]),
        (apply.main, ["classify", "--count", "2", "--draws", "1"]),
    ],
)
def test_figures_that_cannot_be_written_are_one_line(capsys, trained, tmp_path, monkeypatch, command, arguments):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.json").write_text("before")
    monkeypatch.setattr("pathlib.Path.write_text", denied)
    line = [*arguments, "--run", trained, "--out", tmp_path / "a.json"]
    fails_with_one_line(capsys, command, line, "a.json cannot be written", "Permission denied")
    assert (tmp_path / "a.json").read_text() == "before"


@pytest.mark.parametrize("damage", [{"steps": "many"}, {"wings": 2}])
def test_a_damaged_run_configuration_is_named(capsys, trained, tmp_path, damage):
    shutil.copytree(trained, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["training"] |= damage
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    fails_with_one_line(capsys, train.main, ["--out", tmp_path / "run", "--resume"], "config.json: ", "training.")


def test_a_split_of_one_image_is_refused(capsys, tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for i in range(15):
        Image.new("L", (8, 8)).save(tmp_path / "images" / "a" / f"{i}.png")
    size = ["--model.levels", "256", "--model.num-classes", "3", "--dataset", f"folder:{tmp_path / 'images'}"]
    train.main([*QUICK, *size, "--out", str(tmp_path / "run")])
    capsys.readouterr()
    fails_with_one_line(capsys, evaluate.main, ["--run", tmp_path / "run"], "split is 'test', of 1 image")
    arguments = ["--run", tmp_path / "run", "--split", "train"]
    fails_with_one_line(capsys, evaluate.main, arguments, "of one class", "samples 0")


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
    fails_with_one_line(capsys, sample.main, other, "samples.json: content is no JSON")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    other = ["--run", trained, "--out", tmp_path / "mine"]
    fails_with_one_line(capsys, sample.main, other, "a folder that holds other things")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_folder_without_images_takes_the_corrected_command(capsys, trained, tmp_path):
    line = ["--run", trained, "--out", tmp_path / "folder", "--device", "cpu", "--count", 5]
    fails_with_one_line(capsys, sample.main, [*line, "--denoise"], "denoise is asked of a model")
    draw(trained, tmp_path / "folder", "--count", 5)
    assert "5 of them drawn now" in capsys.readouterr().out
    fails_with_one_line(capsys, sample.main, [*line, "--seed", 1], "seed is 1; allowed: 0")


def test_the_first_process_alone_makes_a_folder_of_samples(trained, tmp_path, monkeypatch):
    """Another one finds it made: two that wrote one file at once would take its temporary file from each other."""
    monkeypatch.setattr(sample, "note_settings", lambda *_: pytest.fail("another process writes, too"))
    monkeypatch.setattr("farmer_ref.support.parallel.rank", lambda: 1)
    draw(trained, tmp_path, "--count", 5)


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
    assert figures["images"] == 300
    assert f"{figures['bits_per_dim']:.4f} bits/dim" in printed
    assert f"{figures['importance_weighted_bits_per_dim']:.4f} bits/dim, importance-weighted" in printed
    assert "informative" in printed
    assert "log-det" in printed


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three digits as a user has them: 8-bit PNG files, one of them with its class in its name."""
    folder = tmp_path_factory.mktemp("pictures")
    values = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    for name, image in zip(("a.png", "b_class7.png", "c.png"), values, strict=True):
        Image.fromarray(image).save(folder / name)
    return folder


def test_halves_of_an_odd_size_share_no_pixel_and_leave_none():
    config = replace(PRESETS["tiny"].model, image_size=9, patch_size=3)
    for first, second in (("upper-half", "lower-half"), ("left-half", "right-half")):
        assert (apply.mask_of(first, config) ^ apply.mask_of(second, config)).all()
    assert apply.mask_of("lower-half", config)[0, :, 0].tolist() == [False] * 4 + [True] * 5


INPAINT = ["inpaint", "--count", "2", "--samples", "2", "--particles", "3", "--moves", "1"]


def test_apply_inpaint_keeps_the_known_bytes(trained, pictures, tmp_path, capsys):
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:5, 3:6] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arguments = [*INPAINT, "--run", trained, "--images", pictures, "--mask", tmp_path / "mask.png"]
    apply.main([str(part) for part in (*arguments, "--out", tmp_path / "done")])
    files = sorted(path.name for path in (tmp_path / "done").iterdir())
    assert files == ["a_0.png", "a_1.png", "b_class7_0.png", "b_class7_1.png"]
    for name in files:
        before, after = (
            np.asarray(Image.open(path)) for path in (pictures / f"{name[:-6]}.png", tmp_path / "done" / name)
        )
        assert (before == after)[mask == 0].all()
    assert "2 images, 14% of each missing, 2 completions each" in capsys.readouterr().out
    apply.main([str(part) for part in (*INPAINT, "--run", trained, "--out", tmp_path / "a.png", "--no-use-labels")])
    assert Image.open(tmp_path / "a.png").size == (4 * 42 + 2, 2 * 42 + 2)  # image, masked, two completions


@pytest.mark.parametrize(
    ("arguments", "columns", "rows"),
    [
        (["--change", "class", "--labels", "3", "8", "--guidance", "1"], 3, 3),
        (["--change", "details", "--steps", "4"], 5, 3),
        (["--change", "interpolate", "--steps", "4"], 4, 4),
    ],
)
def test_apply_edit_draws_a_row_for_each_image(trained, pictures, tmp_path, arguments, columns, rows):
    line = ["edit", "--run", trained, "--images", pictures, "--out", tmp_path / "edited.png", *arguments]
    apply.main([str(part) for part in line])
    assert Image.open(tmp_path / "edited.png").size == (columns * 42 + 2, rows * 42 + 2)


def test_apply_anomaly_ranks_a_folder(capsys, pictures, tmp_path):
    line = ["anomaly", "--images", pictures, "--reference", 100, "--draws", 1]
    apply.main([str(part) for part in (*line, "--out", tmp_path / "scores.json")])
    rows = json.loads((tmp_path / "scores.json").read_text())["images"]
    assert {row["image"] for row in rows} == {"a.png", "b_class7.png", "c.png"}
    assert rows[0]["share_of_validation_images_as_strange"] == 0  # noise is no digit
    scores = [row["scores"]["terms and complexity"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert "b_class7.png" in capsys.readouterr().out


def test_apply_anomaly_takes_what_is_normal_from_the_run_s_own_data(trained, tmp_path, monkeypatch):
    asked = []

    def load(dataset, split, *rest):
        asked.append((dataset, split))
        return load_split("digits", split, *rest)

    monkeypatch.setattr(apply, "load_split", load)
    line = ["anomaly", "--dataset", "others", "--count", "2", "--reference", "10", "--draws", "1", "--run"]
    apply.main([*line, str(trained)])
    assert asked == [("others", "test"), ("digits", "train"), ("digits", "validation")]
    Run.open(trained).load().save_pretrained(tmp_path / "exported")  # which does not say what it was trained on
    apply.main([*line, str(tmp_path / "exported")])
    assert asked[3:] == [("others", "test"), ("others", "train"), ("others", "validation")]


def test_apply_classify_tells_what_it_read(capsys, trained, pictures, tmp_path):
    line = ["classify", "--run", trained, "--draws", 1, "--temperature", 2]
    apply.main([str(part) for part in (*line, "--images", pictures, "--out", tmp_path / "read.json")])
    assert "c.png" in (printed := capsys.readouterr().out) and "of 1 images right" in printed
    rows = json.loads((tmp_path / "read.json").read_text())["images"]
    assert [row["label"] for row in rows] == [-1, 7, -1]
    assert sum(rows[0]["probabilities"]) == pytest.approx(1)
    apply.main([str(part) for part in (*line, "--count", 20)])
    assert "of 20 images right (1 dequantisations each)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["inpaint", "--mask", "lower"], ["mask is 'lower', which is no file", "lower-half"]),
        (["inpaint", "--mask", "PICTURES/wide.png"], ["wide.png has 9x8 pixels", "8x8"]),
        (["inpaint", "--mask", "PICTURES/white.png"], ["missing pixels is '100%'", "some, not all"]),
        (["inpaint", "--mask", "PICTURES/black.png"], ["missing pixels is '0%'", "some, not all"]),
        (["inpaint", "--particles", "0"], ["particles is 0", "1 or more"]),
        (["inpaint", "--moves", "0"], ["moves is 0"]),
        (["inpaint", "--images", "none"], ["images is 'none', which is no folder"]),
        (["inpaint", "--images", "PICTURES/empty"], ["holds no image files", ".png"]),
        (["classify", "--images", "PICTURES"], ["wide.png has 9x8 pixels", "allowed: 8x8"]),
        (["anomaly", "--images", "PICTURES/broken"], ["x.png cannot be read", "a whole image file"]),
        (["classify", "--images", "PICTURES/named"], ["label is 12", "0 to 9"]),
        (["classify", "--temperature", "0"], ["temperature is 0.0", "above 0"]),
        (["edit", "--labels", "11"], ["label is 11", "0 to 9"]),
        (["edit", "--steps", "1"], ["steps is 1", "2 or more"]),
        (["edit", "--change", "interpolate", "--count", "1"], ["images is 1", "2 or more"]),
        (["anomaly", "--count", "0"], ["count is 0"]),
        (["classify", "--run", "nothing"], ["model is 'nothing'"]),
    ],
)
def test_apply_refuses(capsys, trained, tmp_path, arguments, parts):
    for folder in ("empty", "broken", "named"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"not an image")
    Image.new("L", (8, 8)).save(tmp_path / "named" / "x_class12.png")
    for name, size, colour in (("wide", (9, 8), 0), ("white", (8, 8), 255), ("black", (8, 8), 0)):
        Image.new("L", size, colour).save(tmp_path / f"{name}.png")
    run = [] if "--run" in arguments else ["--run", trained]
    arguments = [part.replace("PICTURES", str(tmp_path)) for part in arguments]
    fails_with_one_line(capsys, apply.main, [arguments[0], *run, *arguments[1:]], *parts)


def test_evaluate_on_a_folder_of_two_classes(tmp_path):
    name = folder_of_images(tmp_path / "images", count=40)
    size = ["--model.image-size", "16", "--model.channels", "3", "--model.levels", "256", "--model.patch-size", "4"]
    mixed = ["--model.patch-basis", "pca", "--model.channel-mixing", "learned", "--precision", "bfloat16"]
    train.main([*QUICK, *size, *mixed, "--dataset", name, "--out", str(tmp_path / "run")])
    evaluate.main(["--run", str(tmp_path / "run"), "--samples", "20", "--out", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0 <= figures["sample_accuracy"] <= 1
    assert figures["bits_per_dim"] > 0


def test_parameters_prints_counts_beside_the_paper_s(capsys):
    parameters.main([])
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("farmer-1.1b-p16"))
    assert "295" in line
    assert "828" in line
    assert "AR-1.9B does not fit" in printed


def test_help_shows_the_preset_s_own_values(command):
    done = command("train", "--preset", "mnist", "--help")
    assert done.returncode == 0
    words = " ".join(done.stdout.replace("│", " ").split())
    assert "python -m farmer_ref.train" in words
    assert "(default: 28)" in words  # image size
    assert "(default: runs/mnist)" in words


def test_a_wrong_flag_ends_with_2_and_no_traceback(command):
    done = command("sample", "--labls", "3")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    done = command("sample", "--run", "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: model is 'nothing'")
    assert done.stderr.count("\n") == 1
