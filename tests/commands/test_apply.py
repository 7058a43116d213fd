"""`apply`: inpainting, edits, anomalies and classification of a folder of images."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import fails_with_one_line
from PIL import Image

from farmer_ref import PRESETS, apply
from farmer_ref.data.sets import load_split
from farmer_ref.training import runs
from farmer_ref.training.runs import Run


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
    again = [*arguments, "--out", tmp_path / "done"]  # the folder may be that of the images
    fails_with_one_line(capsys, apply.main, again, "which holds a_0.png already; allowed: a new folder")
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
    printed = capsys.readouterr().out
    assert "b_class7.png" in printed and "share of 100 validation images" in printed


def test_apply_anomaly_takes_what_is_normal_from_the_run_s_own_data(trained, tmp_path, monkeypatch):
    asked = []

    def load(dataset, split, *rest, **options):
        asked.append((dataset, split))
        data = load_split("digits", split, *rest, **options)
        data.name = dataset
        return data

    monkeypatch.setattr(runs, "load_split", load)
    line = ["anomaly", "--dataset", "others", "--count", "2", "--reference", "10", "--draws", "1", "--run"]
    apply.main([*line, str(trained)])
    assert asked == [("others", "test"), ("digits", "train"), ("digits", "validation")]
    Run.open(trained).load().save_pretrained(tmp_path / "exported")  # which does not say what it was trained on
    apply.main([*line, str(tmp_path / "exported")])
    assert asked[3:] == [("others", "test"), ("others", "train"), ("others", "validation")]


def test_apply_classify_tells_what_it_read(capsys, trained, pictures, tmp_path):
    line = ["classify", "--run", trained, "--draws", 1, "--temperature", 2]
    apply.main([str(part) for part in (*line, "--images", pictures, "--out", tmp_path / "read.json")])
    assert "c.png" in (printed := capsys.readouterr().out) and "on 1 image (1 dequantisation each)" in printed
    rows = json.loads((tmp_path / "read.json").read_text())["images"]
    assert [row["label"] for row in rows] == [-1, 7, -1]
    assert sum(rows[0]["probabilities"]) == pytest.approx(1)
    apply.main([str(part) for part in (*line, "--count", 20)])
    assert "on 20 images (1 dequantisation each)" in capsys.readouterr().out


@pytest.fixture(scope="module")
def unusable(tmp_path_factory):
    """Pictures that an 8x8 model of ten classes does not take, and masks that hide all of an image or nothing."""
    folder = tmp_path_factory.mktemp("unusable")
    for name in ("empty", "broken", "named"):
        (folder / name).mkdir()
    (folder / "broken" / "x.png").write_bytes(b"not an image")
    Image.new("L", (8, 8)).save(folder / "named" / "x_class12.png")
    for name, size, colour in (("wide", (9, 8), 0), ("white", (8, 8), 255), ("black", (8, 8), 0)):
        Image.new("L", size, colour).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("inpaint --mask lower", ["mask is 'lower', which is not a file", "lower-half"]),
        ("inpaint --mask HERE/wide.png", ["wide.png has 9x8 pixels", "8x8"]),
        ("inpaint --mask HERE/white.png", ["missing pixels is '100%'", "some, not all"]),
        ("inpaint --mask HERE/black.png", ["missing pixels is '0%'", "some, not all"]),
        ("inpaint --particles 0", ["particles is 0", "1 to 1,000,000"]),
        ("inpaint --moves 0", ["moves is 0"]),
        ("inpaint --images none", ["images is 'none', which is not a folder"]),
        ("inpaint --images HERE/empty", ["holds no image files", ".png"]),
        ("classify --images HERE", ["wide.png has 9x8 pixels", "allowed: 8x8"]),
        ("anomaly --images HERE/broken", ["x.png cannot be read", "an intact image file"]),
        ("classify --images HERE/named", ["x_class12.png is 12", "0 to 9"]),
        ("classify --temperature 0", ["temperature is 0.0", "above 0"]),
        ("edit --labels 11", ["label is 11", "0 to 9"]),
        ("edit --out HERE/edited.jpg", ["edited.jpg'", "ends in .png"]),
        ("inpaint --out HERE/filled.jpg", ["filled.jpg'", "a name in .png, or a folder"]),
        ("edit --steps 1", ["steps is 1", "2 to"]),
        ("edit --change interpolate --count 1", ["images is 1", "2 or more"]),
        ("anomaly --count 0", ["count is 0"]),
    ],
)
def test_apply_refuses(capsys, trained, unusable, line, parts):
    arguments = [part.replace("HERE", str(unusable)) for part in line.split()]
    fails_with_one_line(capsys, apply.main, [*arguments, "--run", trained], *parts)
