"""A folder of one's own images as a data set: its classes, its splits, and what of it is read."""

import itertools
import os
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import folder_of_images
from PIL import Image

from farmer_ref import InputError, ModelConfig
from farmer_ref.data.folders import SPLITS, ImageFolder
from farmer_ref.data.images import open_image
from farmer_ref.data.order import training_batches
from farmer_ref.data.sets import batches, load_split

FOLDER = ModelConfig(image_size=16, channels=3, num_classes=3)


def named(*names, **changes):
    """A model that knows its classes by name."""
    return ModelConfig(image_size=16, channels=3, num_classes=len(names), class_names=names, **changes)


def fill(folder, count=2):
    """A folder with a few images."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(folder / f"{i}.png")
    return folder


def places(root, split="train"):
    """The places of the images in a split."""
    return {file.place for part in ImageFolder(f"folder:{root}").split(split).values() for file in part}


def skipped(root, split="train"):
    """How many things were skipped, by reason, when a split was read."""
    folder = ImageFolder(f"folder:{root}")
    folder.split(split)
    return dict(folder.skipped)


def refused(root, *parts, split="train", config=FOLDER):
    """One line that has all parts."""
    with pytest.raises(InputError) as raised:
        load_split(f"folder:{root}", split, config)
    assert "\n" not in str(raised.value) and "allowed: " in str(raised.value)
    for part in parts:
        assert part in str(raised.value)


def test_folder_of_classes(tmp_path):
    name = folder_of_images(tmp_path / "images", count=200)
    splits = {split: load_split(name, split, FOLDER) for split in SPLITS}
    train, validation, test = (len(data) for data in splits.values())
    assert train + validation + test == 400 and 10 <= validation <= 32 and 10 <= test <= 32  # 20 are expected
    files = [file for data in splits.values() for file, _ in data.files]
    assert len(set(files)) == 400
    image, label = splits["train"][0]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.uint8
    assert label in (0, 1)
    grey = load_split(name, "train", ModelConfig(image_size=16, channels=1, num_classes=2))
    assert grey[1][0].shape == (1, 16, 16)


# -- classes have names ------------------------------------------------------------------------------------------------


def test_classes_are_matched_by_name(tmp_path):
    """The same cats and dogs have the same labels in a folder that lacks a class, or has them in another order."""
    fill(tmp_path / "pets" / "cat"), fill(tmp_path / "pets" / "dog")
    for names, labels in ((("ant", "cat", "dog"), [1, 1, 2, 2]), (("dog", "cat"), [0, 0, 1, 1])):
        data = load_split(f"folder:{tmp_path / 'pets'}", "train", named(*names))
        assert [label for _, label in data.files] == labels
        assert [path.parent.name for path, _ in data.files] == [names[label] for label in labels]
        assert data.class_names == names and data.present() == sorted(set(labels))
    refused(tmp_path / "pets", "class dog", "allowed: cat, eel", config=named("cat", "eel"))


def test_a_named_data_set_is_matched_by_name_too():
    names = ("truck", *(f"other {i}" for i in range(8)), "nine")
    with pytest.raises(InputError, match="a class of digits is '0'; allowed: truck"):
        load_split("digits", "test", ModelConfig(levels=17, class_names=names))
    turned = ModelConfig(levels=17, class_names=tuple("9876543210"))
    ours, theirs = (load_split("digits", "test", config).labels for config in (ModelConfig(levels=17), turned))
    assert torch.equal(9 - ours, theirs)


def test_names_of_classes_are_one_for_each_label():
    for names in (("a",), ("a", "a"), ("a", "b", "c")):
        with pytest.raises(InputError, match="class_names is"):
            ModelConfig(num_classes=2, class_names=names)


def test_labels_are_the_training_folder_s(tmp_path):
    """A class that a held-out folder lacks must not shift the labels of the others."""
    folder_of_images(tmp_path / "train", classes=("ant", "bee", "cat"), count=25)
    folder_of_images(tmp_path / "val", classes=("bee", "cat"), count=2)
    test = load_split(f"folder:{tmp_path}", "test", FOLDER)
    assert [label for _, label in test.files] == [1, 1, 2, 2]
    assert test.num_classes == 3 and test.class_names == ("ant", "bee", "cat")
    folder_of_images(tmp_path / "val", classes=("dog",), count=2)
    refused(tmp_path, "dog is a class without training images; allowed: ant, bee, cat", split="test")


def test_a_name_is_the_same_however_its_accent_is_written(tmp_path):
    """As macOS and others spell it."""
    fill(tmp_path / "a" / "cafe\u0301"), fill(tmp_path / "b" / "caf\u00e9")
    for root in (tmp_path / "a", tmp_path / "b"):
        assert load_split(f"folder:{root}", "train", named("caf\u00e9")).class_names == ("caf\u00e9",)
    assert places(tmp_path / "a") == places(tmp_path / "b")
    fill(tmp_path / "a" / "caf\u00e9")
    refused(tmp_path / "a", "is there twice")


@pytest.mark.parametrize("name", [b"\xff\xfe", b"two\nlines"])
def test_a_class_whose_name_cannot_be_printed_is_refused(tmp_path, name):
    os.mkdir(os.path.join(os.fsencode(tmp_path), name))
    refused(tmp_path, "class is '", "can be printed")


# -- splits are stable -------------------------------------------------------------------------------------------------


def test_held_out_images_stay_held_out(tmp_path):
    """Whatever is added or removed, a file's split is that of its own path."""
    name = folder_of_images(tmp_path / "images", count=200)
    before = {split: places(tmp_path / "images", split) for split in SPLITS}
    fill(tmp_path / "images" / "ant", count=50)
    (tmp_path / "images" / "cat" / "007.png").unlink()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "cat" / "0000.png")
    for split in SPLITS:
        after = places(tmp_path / "images", split)
        assert before[split] - {"cat/007.png"} <= after
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "images", moved / "train")  # the same classes in a folder train
    assert {split: places(moved, split) for split in SPLITS} == {
        split: places(tmp_path / "images", split) for split in SPLITS
    }
    chosen = [int(path.stem) for path, _ in load_split(name, "validation", FOLDER).files]
    assert len({number % 20 for number in chosen}) > 1  # not every twentieth


def test_a_limit_spreads_over_the_classes(tmp_path):
    name = folder_of_images(tmp_path, count=100)
    assert len(list(batches(load_split(name, "train", FOLDER), 10, limit=25))) == 3
    labels = torch.cat([labels for _, labels in batches(load_split(name, "train", FOLDER), 10, limit=25)])
    assert 10 <= labels.sum() <= 15  # of both classes, though the files are sorted by class


def test_a_split_that_happens_to_be_empty_is_said(tmp_path, capsys):
    fill(tmp_path / "cat", count=1)
    assert [len(load_split(f"folder:{tmp_path}", split, named("cat"))) for split in ("validation", "test")] == [0, 0]
    assert "has no image in its test split" in capsys.readouterr().err


def test_records_tell_changes_from_moves(tmp_path):
    folder_of_images(tmp_path / "a", count=100)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    a, b = (ImageFolder(f"folder:{tmp_path / name}").records() for name in "ab")
    assert a == b and set(a) == set(SPLITS) and sum(record.images for record in a.values()) == 200
    path = next(tmp_path / "b" / place for place in places(tmp_path / "b", "test"))
    path.write_bytes(path.read_bytes() + b"more")
    changed = ImageFolder(f"folder:{tmp_path / 'b'}").records()
    assert changed["train"] == a["train"] and changed["test"] != a["test"]
    path.unlink()
    assert ImageFolder(f"folder:{tmp_path / 'b'}").records()["test"].images == a["test"].images - 1


# -- which folders are splits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Training", "VALID", "Testing"), ("TRAIN", "validation", "Test")],
)
def test_split_folders_in_any_case(tmp_path, train, validation, test):
    for count, name in enumerate((train, validation, test), 1):
        fill(tmp_path / name / "cat", count=count)
    assert [len(load_split(f"folder:{tmp_path}", split, named("cat"))) for split in SPLITS] == [1, 2, 3]


def test_folder_in_imagenet_s_layout(tmp_path):
    folder_of_images(tmp_path / "train", count=100)
    folder_of_images(tmp_path / "val", count=4)
    splits = {split: load_split(f"folder:{tmp_path}", split, FOLDER) for split in SPLITS}
    train, validation, test = (len(data) for data in splits.values())
    assert train + validation == 200 and 1 <= validation <= 25 and test == 8
    assert all(file.is_relative_to(tmp_path / "val") for file, _ in splits["test"].files)
    folder_of_images(tmp_path / "test", count=2)
    splits = {split: load_split(f"folder:{tmp_path}", split, FOLDER) for split in SPLITS}
    assert [len(data) for data in splits.values()] == [200, 8, 4]


def test_what_is_neither_split_nor_class_is_said(tmp_path, capsys):
    fill(tmp_path / "train" / "cat"), fill(tmp_path / "annotations")
    fill(tmp_path, count=1), fill(tmp_path / "train", count=3)
    assert places(tmp_path) == {"cat/0.png", "cat/1.png"}
    load_split(f"folder:{tmp_path}", "train", named("cat"))
    said = capsys.readouterr().err
    assert "folders beside those of the splits (annotations): 1" in said
    assert "images outside of the folders of classes: 4" in said
    assert "holds folders train; validation and test held out" in said  # one split alone


@pytest.mark.parametrize("name", ["val", "Test"])
def test_one_split_without_training_images_is_no_class(tmp_path, name):
    fill(tmp_path / name / "cat")
    refused(tmp_path, f"holds {name} and no folder train, for the train split")
    refused(tmp_path, f"holds {name} and no folder train", split="validation")
    test = load_split(f"folder:{tmp_path}", "test", named("ant", "cat"))  # of a model that knows its classes
    assert [label for _, label in test.files] == [1, 1]


def test_two_folders_of_one_split_are_refused(tmp_path):
    fill(tmp_path / "train" / "cat"), fill(tmp_path / "val" / "cat"), fill(tmp_path / "valid" / "cat")
    refused(tmp_path, "val and valid", "one folder for the validation split")


def test_a_class_that_is_called_as_a_split_is_not_mistaken(tmp_path):
    """A class `train` among cars and planes; and splits without classes."""
    for name in ("car", "plane", "train"):
        fill(tmp_path / "vehicles" / name)
    refused(tmp_path / "vehicles", "train holds 2 images and no folders", "another name if it is itself a class")
    fill(tmp_path / "flat" / "train"), fill(tmp_path / "flat" / "test")
    refused(tmp_path / "flat", "train holds 2 images and no folders")


def test_an_unlabelled_test_folder_does_not_prevent_training(tmp_path):
    """As Kaggle's ImageNet has one."""
    for split in ("train", "val"):
        fill(tmp_path / split / "cat")
    fill(tmp_path / "test")
    assert [len(load_split(f"folder:{tmp_path}", split, named("cat"))) for split in ("train", "validation")] == [2, 2]
    refused(tmp_path, "test holds 2 images and no folders", split="test", config=named("cat"))


# -- which files are read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hidden",
    [".ipynb_checkpoints/0-checkpoint.png", "._0.png", ".DS_Store", "__MACOSX/cat/0.png", "Thumbs.db", ".hidden.png"],
)
def test_hidden_files_are_never_read(tmp_path, hidden):
    for folder in (tmp_path / "images", tmp_path / "images" / "cat"):
        fill(tmp_path / "images" / "cat")
        path = folder / hidden
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"Mac OS X")
    assert places(tmp_path / "images") == {"cat/0.png", "cat/1.png"}
    assert skipped(tmp_path / "images") == {"hidden": 2}
    assert load_split(f"folder:{tmp_path / 'images'}", "train", named("cat")).class_names == ("cat",)


def test_a_hidden_folder_may_hold_all_of_it(tmp_path):
    fill(tmp_path / ".cache" / "cat")
    assert len(places(tmp_path / ".cache")) == 2


def test_nested_folders_belong_to_their_class_and_a_folder_is_no_image(tmp_path):
    fill(tmp_path / "cat" / "outdoors" / "x.png")
    fill(tmp_path / "cat")
    assert places(tmp_path) == {"cat/0.png", "cat/1.png", "cat/outdoors/x.png/0.png", "cat/outdoors/x.png/1.png"}


def test_links_are_followed_unless_they_repeat_or_circle(tmp_path):
    store, root = fill(tmp_path / "store" / "photos", count=3), fill(tmp_path / "root" / "cat").parent
    (root / "dog").symlink_to(store)  # a class elsewhere
    (root / "cat" / "linked.png").symlink_to(store.parent / "one.png")
    Image.new("RGB", (16, 16)).save(store.parent / "one.png")
    (root / ".objects").mkdir()
    Image.new("RGB", (16, 16)).save(root / ".objects" / "two.png")
    (root / "cat" / "annexed.png").symlink_to(root / ".objects" / "two.png")  # as git-annex does
    expected = {f"dog/{i}.png" for i in range(3)} | {f"cat/{name}.png" for name in (0, 1, "linked", "annexed")}
    assert places(root) == expected
    (root / "cat" / "again.png").symlink_to(root / "cat" / "0.png")
    (root / "cat" / "circle").symlink_to(root / "cat")
    (root / "cat" / "above").symlink_to(tmp_path)
    (root / "cat" / "broken.png").symlink_to(tmp_path / "nothing.png")
    (root / "cat" / "itself.png").symlink_to(root / "cat" / "itself.png")
    (store / "back").symlink_to(store)
    assert places(root) == expected
    assert skipped(root) == {
        "hidden": 1,
        "links to what is read already": 3,
        "links to a folder around this one": 1,
        "broken links": 2,
    }


def test_links_may_lead_to_what_lies_beside_the_splits(tmp_path):
    """A common layout: all images in one place, and splits of links."""
    store = fill(tmp_path / "all" / "cat", count=4)
    for split, numbers in (("train", (0, 1, 2)), ("val", (3, 0))):
        (tmp_path / split / "cat").mkdir(parents=True)
        for i in numbers:
            (tmp_path / split / "cat" / f"{i}.png").symlink_to(store / f"{i}.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "train" / "cat" / "own.png")
    (tmp_path / "val" / "cat" / "again.png").symlink_to(tmp_path / "train" / "cat" / "own.png")
    assert {"cat/0.png", "cat/1.png", "cat/2.png", "cat/own.png"} == places(tmp_path) | places(tmp_path, "validation")
    assert places(tmp_path, "test") == {"cat/3.png", "cat/0.png"}
    assert skipped(tmp_path, "test") == {
        "folders beside those of the splits (all)": 1,
        "links to what is read already": 1,
    }


def test_pipes_sockets_and_devices_are_never_opened(tmp_path):
    fill(tmp_path / "cat")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        where = os.getcwd()
        os.chdir(tmp_path / "cat")  # an address has few letters
        try:
            listening.bind("socket.png")
        finally:
            os.chdir(where)
        assert skipped(tmp_path) == {"pipes, sockets or devices": 3}
    assert places(tmp_path) == {"cat/0.png", "cat/1.png"}


def test_a_file_whose_name_is_no_text_is_read_and_named_in_one_line(tmp_path):
    path = os.path.join(os.fsencode(fill(tmp_path / "cat")), b"\xff\n.png")
    shutil.copy(tmp_path / "cat" / "0.png", path)
    assert len(places(tmp_path)) == 3 and ImageFolder(f"folder:{tmp_path}").records()["train"].images >= 2
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(InputError) as raised:
        open_image(Path(os.fsdecode(path)), 3)
    assert str(raised.value).isprintable()


def test_a_class_without_images_is_refused(tmp_path):
    fill(tmp_path / "cat")
    (tmp_path / "dog").mkdir()
    refused(tmp_path, "dog is a class without images;")
    (tmp_path / "dog" / "notes.txt").write_text("woof")
    refused(tmp_path, "dog is a class without images (no image's ending (.txt): 1)")


def test_a_folder_without_classes_is_named(tmp_path):
    refused(tmp_path, "holds no class folders with images")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    refused(tmp_path, "holds 1 image and no folders", "--model.num-classes 0")


@pytest.mark.parametrize("name", ["folder:", "folder:nowhere", "folder:\0", f"folder:{'x' * 5000}"])
def test_a_path_that_is_no_folder_is_refused(tmp_path, monkeypatch, name):
    fill(tmp_path / "cat")
    monkeypatch.chdir(tmp_path)  # which "folder:" must not mean
    with pytest.raises(InputError, match="is not a folder"):
        load_split(name, "train", FOLDER)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    fill(tmp_path / "images" / "cat")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_split("folder:~/images", "train", named("cat"))) == 2


# -- which pixels (test_images.py has the rest) ------------------------------------------------------------------------


def test_four_channels_are_refused_for_a_folder(tmp_path):
    with pytest.raises(InputError, match="model.channels is 4; allowed: 1"):
        load_split(folder_of_images(tmp_path), "train", ModelConfig(image_size=16, channels=4))


def test_centre_crop_keeps_the_middle(tmp_path):
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = 200
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "0.png")
    image, _ = load_split(f"folder:{tmp_path}", "train", FOLDER)[0]
    assert (image == 200).all()


def test_a_corrupted_image_is_named(tmp_path):
    name = folder_of_images(tmp_path)
    data = load_split(name, "train", FOLDER)
    path = data.files[5][0]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=re.escape(f"image {path} cannot be read")):
        data[5]
    for workers in (0, 1):
        with pytest.raises(InputError, match=re.escape(f"image {path} cannot be read")) as raised:
            list(itertools.islice(training_batches(data, 10, seed=0, start=0, workers=workers), 10))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_several_frames_are_said_once(tmp_path, capfd, workers):
    (tmp_path / "cat").mkdir()
    frames = [Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16), (0, 200, 0))]
    for i in range(40):
        frames[0].save(tmp_path / "cat" / f"{i}.webp", save_all=True, append_images=frames[1:], lossless=True)
    data = load_split(f"folder:{tmp_path}", "train", named("cat"))
    for batch in itertools.islice(training_batches(data, 10, seed=0, start=0, workers=workers), 4):
        assert (batch.values[:, 0] > 150).all() and (batch.values[:, 1] < 50).all()  # the first frame
    assert capfd.readouterr().err.count("several frames") == 1
