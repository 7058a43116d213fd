"""The one reader of image files: which pixels come out of what people have."""

import os
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from farmer_ref import InputError, ModelConfig
from farmer_ref.data.images import described, image_files, open_image, pixels, read_picture, read_pictures

RAMP = np.arange(64).reshape(8, 8)
MODEL = ModelConfig(image_size=8, channels=1, num_classes=10)


def grey(path):
    """The grey levels (H,W) that are read from a file."""
    return pixels(open_image(path, 1)[0])[0].numpy()


def colour(path):
    """The colour (3) of a file of one colour."""
    values = pixels(open_image(path, 3)[0]).flatten(1)
    assert (values == values[:, :1]).all()
    return values[:, 0].tolist()


def refused(path, *parts):
    """One line that names the file."""
    with pytest.raises(InputError) as raised:
        open_image(path, 3)
    assert "\n" not in str(raised.value)
    for part in (path.name, "allowed: ", *parts):
        assert part in str(raised.value)


def test_few_reasons_are_listed():
    assert described(Counter()) == ""
    assert described(Counter({"hidden": 3, "broken links": 1})) == "broken links: 1; hidden: 3"
    assert described(Counter({letter: i for i, letter in enumerate("abcdef", 1)}), most=2) == "e: 5; f: 6; others: 10"


# -- orientation, transparency, modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_photographs_are_upright(tmp_path, orientation, ending):
    """Stored as a camera held that way stores them, all are the same picture."""
    upright = np.zeros((16, 24), dtype=np.uint8)
    upright[:8, :8] = 250
    undo = [
        *(lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1, ::-1], lambda a: a[::-1], lambda a: a.T),
        *(lambda a: np.rot90(a), lambda a: a[::-1, ::-1].T, lambda a: np.rot90(a, -1)),
    ][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{ending}"
    Image.fromarray(np.ascontiguousarray(undo(upright))).convert("RGB").save(path, exif=exif, quality=95)
    assert np.abs(grey(path).astype(int) - upright).max() < 40
    assert open_image(path, 3)[1].rotated == (orientation != 1)


def test_deep_images_are_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    values = (RAMP * 1000).astype(np.uint16)
    Image.fromarray(values[::-1, ::-1].copy()).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(grey(tmp_path / "x.png"), (values / 257).round())


def test_transparency_is_white(tmp_path):
    """Whatever colour hides under it."""
    path = tmp_path / "x.png"
    for mode, value in (("RGBA", (200, 0, 0, 0)), ("LA", (7, 0))):
        Image.new(mode, (4, 4), value).save(path)
        assert colour(path) == [255, 255, 255] and open_image(path, 3)[1].transparent
        assert (grey(path) == 255).all()
    Image.new("RGBA", (4, 4), (200, 0, 0, 128)).save(path)
    assert colour(path) == pytest.approx([228, 127, 127], abs=1)
    for mode, key in (("RGB", (9, 9, 9)), ("L", 9)):
        Image.new(mode, (4, 4), key).save(path, transparency=key)
        assert colour(path) == [255, 255, 255]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    for ending in ("png", "gif"):
        palette.save(path.with_suffix(f".{ending}"), transparency=1)
        assert colour(path.with_suffix(f".{ending}")) == [255, 255, 255]


def test_palettes_cmyk_and_bilevel_images(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 30, 10])
    palette.save(tmp_path / "x.gif")
    assert colour(tmp_path / "x.gif") == [200, 30, 10]
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    assert colour(tmp_path / "x.jpg") == pytest.approx([255, 0, 0], abs=6)
    Image.new("1", (4, 4), 1).save(tmp_path / "x.png")
    assert colour(tmp_path / "x.png") == [255, 255, 255]


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_of_several_frames_the_first(tmp_path, ending):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"x.{ending}"
    options = {"lossless": True} if ending == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert colour(path) == [255, 0, 0] and open_image(path, 3)[1].animated


# -- deep pixels -------------------------------------------------------------------------------------------------------


def test_sixteen_bit_images_keep_their_greys(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for ending in ("png", "tiff", "pgm"):
        Image.fromarray(ramp).save(tmp_path / f"x.{ending}")
        assert np.array_equal(grey(tmp_path / f"x.{ending}").ravel(), np.arange(256)), ending


def tiff(bits, values):
    """A grey TIFF file, its values packed by hand to so many bits."""
    height, width = values.shape
    stream = b"".join(
        int("".join(f"{v:0{bits}b}" for v in row).ljust(-(-width * bits // 8) * 8, "0"), 2).to_bytes(
            -(-width * bits // 8), "big"
        )
        for row in values.tolist()
    )
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(stream)}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<I", 8 + len(stream))
    return head + stream + struct.pack("<H", len(tags)) + fields + b"\0" * 4


def test_twelve_bits_are_scaled_by_their_own_range(tmp_path):
    values = RAMP * 65  # 0..4095
    (tmp_path / "x.tiff").write_bytes(tiff(12, values))
    assert np.array_equal(grey(tmp_path / "x.tiff"), (values * 255 / 4095).round())


def test_twelve_bits_in_sixteen_are_refused_rather_than_black(tmp_path):
    for ending in ("png", "tiff"):
        Image.fromarray((RAMP * 65).astype(np.uint16)).save(tmp_path / f"x.{ending}")
        refused(tmp_path / f"x.{ending}", "16 bits per channel and uses 6.2% of their range")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "black.png")
    assert (grey(tmp_path / "black.png") == 0).all()


def png_of_sixteen_bits(values, transparent=()):
    """A grey or RGB PNG file (H,W,C) of 16 bits per channel, with a transparent colour; Pillow does not write it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, channels - 1, 0, 0, 0))
    header += chunk(b"tRNS", np.array(transparent, ">u2").tobytes()) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_of_sixteen_bits(tmp_path):
    full = np.full((4, 4, 3), (65535, 257 * 100, 0))
    (tmp_path / "x.png").write_bytes(png_of_sixteen_bits(full))
    assert colour(tmp_path / "x.png") == [255, 100, 0]
    (tmp_path / "x.png").write_bytes(png_of_sixteen_bits(full // 16))
    refused(tmp_path / "x.png", "16 bits per channel")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_sixteen_bits_is_white(tmp_path, channels):
    values = np.full((2, 2, channels), 257 * 100)
    values[0, 0] = 1000
    (tmp_path / "x.png").write_bytes(png_of_sixteen_bits(values, transparent=(1000,) * channels))
    assert open_image(tmp_path / "x.png", 3)[1].transparent
    assert grey(tmp_path / "x.png").tolist() == [[255, 100], [100, 100]]


def test_integers_and_floats_of_32_bits(tmp_path):
    path = tmp_path / "x.tiff"
    Image.fromarray((RAMP * 1000).astype(np.int32)).save(path)
    refused(path, "32-bit integers")
    Image.fromarray((RAMP / 63).astype(np.float32)).save(path)
    assert np.array_equal(grey(path), (RAMP / 63 * 255).round())
    for values in (RAMP, RAMP / 63 - 0.5, np.where(RAMP == 5, np.nan, 0), np.where(RAMP == 5, np.inf, 0)):
        Image.fromarray(values.astype(np.float32)).save(path)
        refused(path, "outside of 0..1")


# -- damage, and what is no image --------------------------------------------------------------------------------------


def damaged(tmp_path):
    """Image files of many formats, cut, overwritten or with flipped bytes."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for ending in ("png", "jpg", "gif", "webp", "tiff", "bmp", "ppm"):
        image.save(tmp_path / f"whole.{ending}")
        content = (tmp_path / f"whole.{ending}").read_bytes()
        for number in range(12):
            changed = bytearray(content)
            if number < 4:
                changed = changed[: len(changed) * number // 4]
            else:
                for place in rng.integers(0, min(len(changed), 80 if number < 8 else 10**6), 6):
                    changed[place] = rng.integers(0, 256)
            path = tmp_path / f"{number}.{ending}"
            path.write_bytes(changed)
            yield path


def test_whatever_a_decoder_raises_is_one_line(tmp_path):
    messages = {}
    for path in damaged(tmp_path):
        try:
            open_image(path, 3)
        except InputError as error:  # some damage does not show
            messages[path] = str(error)
    assert len(messages) >= 40
    assert all(str(path) in message and "\n" not in message for path, message in messages.items())


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), KeyError(3), MemoryError(), RecursionError("deep")])
def test_an_unheard_of_exception_of_a_decoder_is_one_line(tmp_path, monkeypatch, error):
    Image.new("L", (8, 8)).save(tmp_path / "x.png")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    refused(tmp_path / "x.png", "cannot be read")


def test_a_pipe_or_a_folder_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe", "folder", "nothing"):
        refused(tmp_path / f"{name}.png", "is not a file")


# -- a folder of images of the model's size ----------------------------------------------------------------------------


def test_images_of_a_folder_for_apply(tmp_path, capsys):
    for name in ("b_class7.png", "a.png", "._a.png"):
        Image.new("L", (8, 8), 9).save(tmp_path / name)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "c.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "samples.json").write_text("{}")
    found = read_pictures(str(tmp_path), MODEL)
    assert found.names == ["a.png", "b_class7.png", "c.png"] and found.labels.tolist() == [-1, 7, -1]
    assert found.bytes[:2].unique().tolist() == [9] and found.bytes[2].unique().tolist() == [255]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "hidden: 1" in said and "folders: 1" in said and "devices: 1" in said
    assert [path.name for path in image_files(tmp_path)[0]] == found.names


@pytest.mark.parametrize("label", ["12", "9" * 30])
def test_a_label_that_the_model_lacks_is_named(tmp_path, label):
    Image.new("L", (8, 8)).save(tmp_path / f"x_class{label}.png")
    with pytest.raises(InputError, match=f"x_class{label}.png is {label}; allowed: 0 to 9"):
        read_pictures(str(tmp_path), MODEL)


def test_a_rotated_image_has_the_size_of_the_picture(tmp_path):
    """A mask, say: stored lying, seen standing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.zeros((8, 8), np.uint8)
    values[0] = 255
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    read = read_picture(tmp_path / "x.png", 1, 8)
    assert torch.equal(read[0, :, -1], torch.full((8,), 255, dtype=torch.uint8)) and int(read.sum()) == 8 * 255
