"""`python -m farmer_ref.data`: what a user sees before training."""

import os

import numpy as np
import pytest
from helpers import QUICK, fails_with_one_line, folder_of_images
from PIL import Image

from farmer_ref import InputError, train
from farmer_ref.data import folders
from farmer_ref.data.__main__ import main


def look(capsys, root, *arguments):
    main([f"folder:{root}", "--out", str(root.parent / "sheet.png"), *map(str, arguments)])
    return capsys.readouterr().out


def test_what_would_be_read(tmp_path, capsys):
    root = tmp_path / "pets"
    folder_of_images(root, count=100)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 20)).save(root / "cat" / "turned.jpg", exif=exif)
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    frames[0].save(root / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    (root / "dog" / ".DS_Store").touch()
    (root / "dog" / "notes.txt").touch()
    os.mkfifo(root / "dog" / "pipe.png")
    lines = look(capsys, root).splitlines()
    assert "202 images of 2 classes, one folder per class; validation and test held out" in lines[0]
    assert lines[1].split() == ["label", "class", "train", "validation", "test"]
    counts = [line.split() for line in lines[2:4]]
    assert [row[:2] for row in counts] == [["0", "cat"], ["1", "dog"]]
    assert [sum(map(int, row[2:])) for row in counts] == [101, 101]
    printed = "\n".join(lines)
    for part in ("of 202 images opened", "4x4, 24x20, 60x20 (smallest", "RGBA 50", "1 turned as", "1 with several"):
        assert part in printed
    assert "50 with transparency, composed on white" in printed
    assert "skipped hidden: 1; no image's ending (.txt): 1; pipes, sockets or devices: 1" in printed
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 66 + 2, 8 * 66 + 2, 3)
    assert "of 10 images opened" in look(capsys, root, "--images", 10, "--image-size", 8)


def test_what_cannot_be_read_is_a_problem(tmp_path, capsys):
    root = tmp_path / "pets"
    folder_of_images(root / "train")
    folder_of_images(root / "val", classes=("cat", "eel"), count=3)
    (root / "train" / "cat" / "bad.png").write_bytes(b"no image")
    arguments = [f"folder:{root}", "--out", tmp_path / "sheet.png"]
    fails_with_one_line(capsys, main, arguments, "with 2 problems")
    assert (tmp_path / "sheet.png").is_file()


def test_not_all_of_many_problems_are_printed(tmp_path, capsys):
    root = tmp_path / "pets"
    folder_of_images(root / "train")
    for number in range(13):
        (root / "train" / "cat" / f"bad{number}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="13 problems"):
        main([f"folder:{root}", "--out", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr().out
    assert printed.count("problem: ") == 10 and "and 3 more" in printed


def test_images_that_two_splits_share_are_said(tmp_path, capsys):
    """Compared by their pixels: a copy in another format is one, an image of the same size is none."""
    root = tmp_path / "pets"
    folder_of_images(root / "train", count=6)
    folder_of_images(root / "test", count=2, size=(9, 9))
    assert "of one in an earlier split" not in look(capsys, root)
    Image.open(root / "train" / "cat" / "000.png").save(root / "test" / "dog" / "again.bmp")
    printed = look(capsys, root)
    assert "1 image with the pixels of one in an earlier split" in printed
    assert "dog/again.bmp (test) = cat/000.png (train)" in printed
    assert "--images" not in printed
    assert "--images 17 opens all" in look(capsys, root, "--images", 16)


@pytest.mark.parametrize(
    ("count", "classes", "said"), [(1, ("cat",), "1 image of 1 class,"), (2, ("cat",), "2 images")]
)
def test_numbers_agree_with_their_nouns(tmp_path, capsys, count, classes, said):
    folder_of_images(tmp_path / "pets", classes=classes, count=count)
    assert said in look(capsys, tmp_path / "pets")


def test_the_contact_sheet_is_a_png_and_says_so(tmp_path, capsys):
    folder_of_images(tmp_path / "pets", count=1)
    line = [f"folder:{tmp_path / 'pets'}", "--out", tmp_path / "sheet.jpg"]
    fails_with_one_line(capsys, main, line, "sheet.jpg'", "ends in .png")


@pytest.mark.parametrize("dataset", ["", "digits", "folder:nowhere"])
def test_other_names_are_refused(tmp_path, monkeypatch, capsys, dataset):
    monkeypatch.chdir(tmp_path)
    fails_with_one_line(capsys, main, [dataset], f"dataset is '{dataset}'", "allowed: folder:PATH")
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_images_are_all_held_out(tmp_path, capsys, monkeypatch):
    """By chance, in a tiny folder."""
    monkeypatch.setattr(folders, "_drawn", lambda place: 0)
    root = tmp_path / "pets"
    folder_of_images(root, count=1)
    assert "no image falls to the train split" in look(capsys, root)
    assert Image.open(tmp_path / "sheet.png").size[0] == 8 * 66 + 2  # of the split that has images
    size = ["--model.image-size", 16, "--model.channels", 3, "--model.levels", 256, "--model.patch-size", 4]
    line = [*QUICK, *size, "--model.num-classes", 0, "--dataset", f"folder:{root}", "--out", tmp_path / "run"]
    fails_with_one_line(capsys, train.main, line, "dataset is 'folder:", "allowed: a data set with training images")
