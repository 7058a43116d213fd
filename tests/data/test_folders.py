"""A folder of one's own images as a data set."""

import itertools
import re

import numpy as np
import pytest
import torch
from helpers import folder_of_images
from PIL import Image

from farmer_ref import InputError, ModelConfig
from farmer_ref.data.folders import SPLITS
from farmer_ref.data.order import training_batches
from farmer_ref.data.sets import batches, load_split

FOLDER = ModelConfig(image_size=16, channels=3, num_classes=3)


def test_folder_of_classes(tmp_path):
    name = folder_of_images(tmp_path / "images")
    splits = {split: load_split(name, split, FOLDER) for split in SPLITS}
    assert [len(data) for data in splits.values()] == [54, 3, 3]
    files = [file for data in splits.values() for file, _ in data.files]
    assert len(set(files)) == 60
    image, label = splits["train"][0]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.uint8
    assert label in (0, 1)
    grey = load_split(name, "train", ModelConfig(image_size=16, channels=1, num_classes=2))
    assert grey[1][0].shape == (1, 16, 16)


def test_folder_in_imagenet_s_layout(tmp_path):
    folder_of_images(tmp_path / "train")
    folder_of_images(tmp_path / "val", count=4)
    splits = {split: load_split(f"folder:{tmp_path}", split, FOLDER) for split in SPLITS}
    assert [len(data) for data in splits.values()] == [57, 3, 8]
    assert all(file.is_relative_to(tmp_path / "val") for file, _ in splits["test"].files)
    folder_of_images(tmp_path / "test", count=2)
    splits = {split: load_split(f"folder:{tmp_path}", split, FOLDER) for split in SPLITS}
    assert [len(data) for data in splits.values()] == [60, 8, 4]


def test_labels_are_the_training_folder_s(tmp_path):
    """A class that a held-out folder lacks must not shift the labels of the others."""
    folder_of_images(tmp_path / "train", classes=("ant", "bee", "cat"), count=25)
    folder_of_images(tmp_path / "val", classes=("bee", "cat"), count=2)
    test = load_split(f"folder:{tmp_path}", "test", FOLDER)
    assert [label for _, label in test.files] == [1, 1, 2, 2]
    assert test.num_classes == 3
    folder_of_images(tmp_path / "val", classes=("dog",), count=2)
    with pytest.raises(InputError, match="dog is a class without training images; allowed: ant, bee, cat"):
        load_split(f"folder:{tmp_path}", "test", FOLDER)


def test_held_out_images_are_spread_over_the_folder(tmp_path):
    name = folder_of_images(tmp_path, count=100)
    chosen = [int(path.stem) for path, _ in load_split(name, "validation", FOLDER).files]
    assert len(chosen) == 10
    assert len({number % 20 for number in chosen}) > 1  # not every twentieth
    assert len(list(batches(load_split(name, "train", FOLDER), 10, limit=25))) == 3
    labels = torch.cat([labels for _, labels in batches(load_split(name, "train", FOLDER), 10, limit=25)])
    assert 10 <= labels.sum() <= 15  # of both classes, though the files are sorted by class


def test_sixteen_bit_images_keep_their_greys(tmp_path):
    (tmp_path / "a").mkdir()
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for i in range(30):
        Image.fromarray(ramp).save(tmp_path / "a" / f"{i}.png")
    image, _ = load_split(f"folder:{tmp_path}", "train", ModelConfig(image_size=16, channels=1))[0]
    assert len(image.unique()) == 256


def test_four_channels_are_refused_for_a_folder(tmp_path):
    with pytest.raises(InputError, match="model.channels is 4; allowed: 1"):
        load_split(folder_of_images(tmp_path), "train", ModelConfig(image_size=16, channels=4))


def test_centre_crop_keeps_the_middle(tmp_path):
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = 200
    for i in range(30):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(wide).save(tmp_path / "a" / f"{i}.png")
    image, _ = load_split(f"folder:{tmp_path}", "train", FOLDER)[0]
    assert (image == 200).all()


def test_a_corrupted_image_is_named(tmp_path):
    name = folder_of_images(tmp_path, count=30)
    data = load_split(name, "train", FOLDER)
    path = data.files[5][0]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=re.escape(f"image {path} cannot be read")):
        data[5]
    for workers in (0, 1):
        with pytest.raises(InputError, match=re.escape(f"image {path} cannot be read")) as raised:
            list(itertools.islice(training_batches(data, 10, seed=0, start=0, workers=workers), 10))
        assert "\n" not in str(raised.value)


def test_a_folder_without_classes_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="holds no class folders with images"):
        load_split(f"folder:{tmp_path}", "train", FOLDER)
