"""Your own images through all commands: classes by name, folders that moved or changed, runs of the first edition."""

import json
import os
import shutil

import numpy as np
import pytest
from helpers import QUICK, draw, fails_with_one_line, folder_of_images
from PIL import Image

from farmer_ref import Farmer, apply, distill, evaluate, sample, train
from farmer_ref.data.folders import ImageFolder
from farmer_ref.support import parallel
from farmer_ref.support.hub import CardFacts, model_card
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.runs import Run

SHAPE = ["--model.levels", "256", "--model.num-classes", "2"]  # of the digits' size
BRIEF = ["--steps", "4", "--validate-every", "0", "--sample-every", "0", "--device", "cpu"]


@pytest.fixture(autouse=True)
def notes_as_if_new(monkeypatch):
    """A command says a thing once; here many run in one process."""
    monkeypatch.setattr(parallel, "_noted", set())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder `pets` of cats and dogs, and a run that was trained on it. Tests copy both before they change them."""
    root = tmp_path_factory.mktemp("home")
    folder_of_images(root / "pets", count=120)
    train.main([*QUICK, *SHAPE, "--dataset", f"folder:{root / 'pets'}", "--out", str(root / "run")])
    return root


@pytest.fixture
def copy(home, tmp_path):
    """A copy of both, in another place: the folder that the run names is elsewhere."""
    shutil.copytree(home, tmp_path / "copy")
    return tmp_path / "copy"


def saved(run):
    return json.loads((run / "config.json").read_text())


def as_of_the_first_edition(run):
    """What config.json held before it had names of classes and what was held out."""
    config = saved(run)
    del config["data"], config["model"]["class_names"]
    (run / "config.json").write_text(json.dumps(config))


def main(command, *arguments):
    command.main([str(argument) for argument in arguments])


def classified(tmp_path, *arguments):
    """The rows that `apply classify` writes."""
    main(apply, "classify", "--draws", 1, "--device", "cpu", "--out", tmp_path / "classes.json", *arguments)
    return json.loads((tmp_path / "classes.json").read_text())["images"]


# -- classes have names ------------------------------------------------------------------------------------------------


def test_a_run_stores_its_classes_and_what_it_held_out(home, tmp_path):
    config = saved(home / "run")
    assert config["model"]["class_names"] == ["cat", "dog"]
    assert {split: held["images"] for split, held in config["data"].items()} == {
        split: sum(map(len, ImageFolder(f"folder:{home / 'pets'}").split(split).values()))
        for split in ("train", "validation", "test")
    }
    Farmer.from_pretrained(home / "run").save_pretrained(tmp_path / "exported")  # as `push_to_hub` does
    assert Farmer.from_pretrained(tmp_path / "exported").config.class_names == ("cat", "dog")


def test_what_is_printed_of_classes_has_their_names(home, tmp_path, capsys):
    run, out = home / "run", tmp_path / "a.png"
    main(sample, "--run", run, "--rows", 1, "--device", "cpu", "--out", out)
    assert "columns 0 (cat), 1 (dog)" in capsys.readouterr().out
    main(sample, "--run", run, "--rows", 1, "--labels", 1, -1, "--device", "cpu", "--out", out)
    assert "columns 1 (dog), -1" in capsys.readouterr().out
    main(apply, "edit", "--run", run, "--count", 1, "--device", "cpu", "--out", out)
    assert "0 (cat), 1 (dog)" in capsys.readouterr().out
    main(apply, "classify", "--run", run, "--count", 2, "--draws", 1, "--device", "cpu", "--out", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["class_names"] == ["cat", "dog"]
    facts = CardFacts.model_validate_json((run / "config.json").read_text())
    assert "0 `cat`, 1 `dog`" in model_card("me/pets", facts, license="mit", with_student=False)


def test_a_folder_with_fewer_classes_keeps_their_labels(home, copy, tmp_path, capsys):
    """The same dogs are dogs, whether cats lie beside them or not."""
    shutil.rmtree(copy / "pets" / "cat")
    dogs = f"folder:{copy / 'pets'}"
    rows = classified(tmp_path, "--run", home / "run", "--dataset", dogs, "--split", "train", "--count", 20)
    assert {row["label"] for row in rows} == {1}
    assert "has no image of cat in its train split" in capsys.readouterr().err
    Run.open(home / "run").load().save_pretrained(tmp_path / "exported")
    rows = classified(tmp_path, "--run", tmp_path / "exported", "--dataset", dogs, "--split", "train", "--count", 2)
    assert {row["label"] for row in rows} == {1}


def test_samples_are_drawn_of_the_classes_that_are_there(home, copy, tmp_path):
    (copy / "pets" / "ant").mkdir()
    for path in sorted((copy / "pets" / "cat").iterdir())[:60]:
        path.rename(copy / "pets" / "ant" / path.name)
    shape = ["--model.levels", "256", "--model.num-classes", "3"]
    main(train, *QUICK, *shape, "--dataset", f"folder:{copy / 'pets'}", "--out", tmp_path / "three")
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "sample_scores", lambda classifier, model, labels, **_: asked.append(labels) or 1 / 0)
        few = ["--samples", 6, "--draws", 1, "--images", 4]
        with pytest.raises(ZeroDivisionError):
            main(evaluate, "--run", tmp_path / "three", "--dataset", f"folder:{home / 'pets'}", *few)
    assert asked[0].tolist() == [1, 2, 1, 2, 1, 2]  # cat and dog, not ant


@pytest.mark.parametrize("command", [evaluate, distill, apply])
def test_a_class_that_the_model_lacks_is_named(home, copy, tmp_path, capsys, command):
    (copy / "pets" / "cat").rename(copy / "pets" / "bird")
    line = ["--run", home / "run", "--dataset", f"folder:{copy / 'pets'}"]
    line = ["classify", *line] if command is apply else line
    line += ["--out", tmp_path / "student"] if command is distill else []
    fails_with_one_line(capsys, command.main, line, "whose class bird the model does not have", "allowed: cat, dog")
    assert not (tmp_path / "student").exists()


def test_a_shipped_model_knows_the_names_of_its_data_set(tmp_path):
    """Also where it does not store them."""
    run = Run.open("digits-noise")
    assert run.model_config.class_names == () and run.class_names() == tuple("0123456789")
    Run.open(run.folder).load().save_pretrained(tmp_path)
    assert Run.open(tmp_path).class_names() == ()  # a model alone


@pytest.mark.parametrize("number", [1, 3, 10])
def test_a_model_must_have_as_many_classes_as_its_images(home, tmp_path, capsys, number):
    line = [*QUICK, "--model.levels", 256, "--model.num-classes", number, "--out", tmp_path / "run"]
    line += ["--dataset", f"folder:{home / 'pets'}"]
    fails_with_one_line(capsys, train.main, line, f"model.num_classes is {number}; allowed: 2")
    assert not (tmp_path / "run").exists()


def test_a_class_whose_only_image_is_held_out_is_named(home, copy, tmp_path, capsys):
    (copy / "pets" / "dog").rename(copy / "dog")
    (copy / "pets" / "dog").mkdir()
    held_out = next(iter(ImageFolder(f"folder:{home / 'pets'}").split("test")["dog"]))
    shutil.copy(held_out.path, copy / "pets" / "dog")
    line = [*QUICK, *SHAPE, "--dataset", f"folder:{copy / 'pets'}", "--out", tmp_path / "run"]
    fails_with_one_line(capsys, train.main, line, "without training images of dog")


def test_an_untrained_class_of_a_named_data_set_is_said(tmp_path, capsys):
    main(train, *QUICK, "--steps", 2, "--dataset", "digits-without-3", "--out", tmp_path / "run")
    assert "digits-without-3 has no images of 3: samples of that class" in capsys.readouterr().err


def test_images_of_a_folder_have_the_names_of_their_files(home, tmp_path, capsys):
    """Else nobody finds the image that `apply anomaly` calls strange."""
    split = {file.place for files in ImageFolder(f"folder:{home / 'pets'}").split("test").values() for file in files}
    rows = classified(tmp_path, "--run", home / "run", "--count", 3)
    assert {row["image"] for row in rows} <= split
    assert [row["image"].split("/")[0] for row in rows] == [("cat", "dog")[row["label"]] for row in rows]
    brief = ["--count", 1, "--samples", 1, "--particles", 2, "--moves", 1, "--device", "cpu"]
    main(apply, "inpaint", "--run", home / "run", *brief, "--out", tmp_path / "filled")
    assert [path.name for path in (tmp_path / "filled").iterdir()] == [
        f"{rows[0]['image'].removesuffix('.png').replace('/', '_')}_0.png"
    ]
    line = ["classify", "--run", home / "run", "--images", home / "pets"]
    fails_with_one_line(capsys, apply.main, line, "holds no image files", f"--dataset folder:{home / 'pets'}")


# -- moved data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", ["pets", "./pets", "pets/", "../copy/pets", "absolute", "~/pets", "link"])
def test_the_same_folder_resumes_and_evaluates_under_any_name(copy, tmp_path, monkeypatch, capsys, spelled):
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HOME", str(copy))
    os.symlink("pets", "link")
    dataset = f"folder:{copy / 'pets' if spelled == 'absolute' else spelled}"
    main(train, "--out", "run", "--resume", "--dataset", dataset, "--steps", 22, "--device", "cpu")
    assert checkpoints(copy / "run")[-1].name == "step-22"
    assert saved(copy / "run")["training"]["dataset"] == dataset  # from now on
    main(evaluate, "--run", "run", "--samples", 0, "--draws", 1, "--images", 4)
    assert "note: " not in capsys.readouterr().err


def test_a_changed_folder_is_said_and_not_resumed(copy, capsys):
    dataset = f"folder:{copy / 'pets'}"
    evaluated = ["--run", copy / "run", "--dataset", dataset, "--samples", 0, "--draws", 1, "--images", 4]
    main(evaluate, *evaluated)
    assert "note: " not in capsys.readouterr().err
    for i in range(200):
        Image.new("RGB", (8, 8)).save(copy / "pets" / "cat" / f"new{i}.png")
    main(evaluate, *evaluated)
    assert "the test split of folder:" in (said := capsys.readouterr().err) and "images then" in said
    line = ["--out", copy / "run", "--resume", "--steps", 30, "--dataset", dataset]
    held = saved(copy / "run")["data"]["train"]["images"]
    parts = [f"{held} train images then, ", "as in the run that is resumed"]
    fails_with_one_line(capsys, train.main, line, "dataset is 'folder:", *parts)
    fails_with_one_line(capsys, train.main, [*line[:-1], "digits"], "model.levels is 256")


def test_a_distillation_of_moved_images(copy, home, tmp_path, capsys):
    line = ["--run", copy / "run", *BRIEF, "--dataset", f"folder:{copy / 'pets'}", "--out", tmp_path / "student"]
    main(distill, *line)
    assert (tmp_path / "student" / "student.safetensors").exists()
    assert "note: " not in capsys.readouterr().err
    main(distill, *line, "--resume", "--steps", 6)
    assert checkpoints(tmp_path / "student" / "distillation")[-1].name == "step-6"
    capsys.readouterr()
    Run.open(home / "run").load().save_pretrained(tmp_path / "exported")  # which names no images
    line = ["--run", tmp_path / "exported", *BRIEF, "--out", tmp_path / "other"]
    fails_with_one_line(capsys, distill.main, line, "dataset is not given", "allowed: --dataset NAME")
    main(distill, *line, "--dataset", f"folder:{copy / 'pets'}")


def test_anomalies_of_moved_images(copy, tmp_path, capsys):
    """What is normal comes from the run's own images, wherever they are now."""
    config = saved(copy / "run")
    config["training"]["dataset"] = "folder:gone"
    (copy / "run" / "config.json").write_text(json.dumps(config))
    line = ["anomaly", "--run", copy / "run", "--reference", 10, "--draws", 1]
    main(apply, *line, "--dataset", f"folder:{copy / 'pets'}", "--count", 2)
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    main(apply, *line, "--dataset", f"folder:{copy / 'pets'}", "--images", tmp_path)
    fails_with_one_line(capsys, apply.main, [*line, "--images", tmp_path], "gone is not a folder")
    changed = next((copy / "pets" / "cat").iterdir())
    shutil.copy(changed, changed.with_name("one-more.png"))
    line_of_changed = [*line, "--dataset", f"folder:{copy / 'pets'}", "--split", "train", "--count", 2]
    fails_with_one_line(capsys, apply.main, line_of_changed, "pets', with other images", "folder:gone has gone")
    line = ["classify", "--run", copy / "run", "--images", tmp_path, "--dataset", "digits"]
    fails_with_one_line(capsys, apply.main, line, "dataset is 'digits'; allowed: none with images")


# -- runs of the first edition -----------------------------------------------------------------------------------------


def test_a_run_of_the_first_edition_still_loads_and_says_how(copy, tmp_path, capsys):
    as_of_the_first_edition(copy / "run")
    dataset = f"folder:{copy / 'pets'}"
    rows = classified(tmp_path, "--run", copy / "run", "--dataset", dataset)
    assert {row["label"] for row in rows} == {0, 1}
    said = capsys.readouterr().err
    assert "stores no class names: those of folder:" in said and "(0 cat, 1 dog)" in said
    assert "does not record what it held out" in said
    (copy / "pets" / "cat").rename(copy / "cat")  # dogs alone would be matched as cats
    line = ["classify", "--run", copy / "run", "--dataset", dataset, "--split", "train"]
    fails_with_one_line(capsys, apply.main, line, "is 1; allowed: 2: no names to match by")
    (copy / "cat").rename(copy / "pets" / "cat")
    config = saved(copy / "run")
    config["training"]["dataset"] = dataset
    (copy / "run" / "config.json").write_text(json.dumps(config))
    main(train, "--out", copy / "run", "--resume", "--steps", 22, "--device", "cpu")
    assert checkpoints(copy / "run")[-1].name == "step-22" and "data" not in saved(copy / "run")


def test_a_damaged_record_is_named(copy, capsys):
    config = saved(copy / "run")
    config["data"]["test"]["images"] = -1
    (copy / "run" / "config.json").write_text(json.dumps(config))
    fails_with_one_line(capsys, evaluate.main, ["--run", copy / "run"], "config.json: data.test.images is -1")


# -- few images, and images of `apply` ---------------------------------------------------------------------------------


def test_a_run_without_validation_images(tmp_path, capsys):
    for i in range(3):
        (tmp_path / "pets" / "train" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(tmp_path / "pets" / "train" / "cat" / f"{i}.png")
    shape = ["--model.levels", 256, "--model.num-classes", 1, "--dataset", f"folder:{tmp_path / 'pets'}"]
    main(train, *QUICK, *shape, "--steps", 4, "--out", tmp_path / "run")
    printed = capsys.readouterr()
    assert "no validation images" in printed.out
    assert "has no image in its validation split" in printed.err
    main(distill, "--run", tmp_path / "run", *BRIEF)
    assert "none, without validation images" in capsys.readouterr().out
    line = ["classify", "--run", tmp_path / "run"]
    fails_with_one_line(capsys, apply.main, line, "split is 'test'; allowed: one that has images")
    fails_with_one_line(capsys, evaluate.main, ["--run", tmp_path / "run"], "split is 'test', of 0 image")


def test_masks_and_earlier_samples_have_the_same_reader(tmp_path, capsys):
    """Upright, opaque, and never a hidden file."""
    lying = np.zeros((8, 8), np.uint8)
    lying[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(tmp_path / "mask.png", exif=exif)
    assert apply.mask_of(str(tmp_path / "mask.png"), Run.open("digits").model_config)[0, :, -1].all()
    draw("digits", tmp_path / "samples", "--count", 20, "--batch-size", 20)
    (tmp_path / "samples" / "._000000_class0.png").write_bytes(b"Mac OS X")
    (tmp_path / "samples" / ".ipynb_checkpoints").mkdir()
    line = ["--run", "digits", "--fid", "--extractor", "classifier", "--samples-from", tmp_path / "samples"]
    main(evaluate, *line, "--images", 20)
    assert "20 images of" in capsys.readouterr().out
    os.mkfifo(tmp_path / "pipe.png")
    fails_with_one_line(capsys, apply.main, ["inpaint", "--mask", tmp_path / "pipe.png"], "which is not a file")
