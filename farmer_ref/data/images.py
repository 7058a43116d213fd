"""Image files: which ones are read, and which pixels. One reader for training, `apply`, masks and earlier samples.

Images are bytes (C,H,W), values 0..255; labels are integers.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from farmer_ref.model.config import NULL_LABEL, ModelConfig
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.parallel import note_once

SUFFIXES = {
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"),
    ".webp",
}
LEFT_BY_SYSTEMS = {"__macosx", "@eadir", "$recycle.bin", "desktop.ini", "ehthumbs.db", "thumbs.db"}
ORIENTATION, TIFF_BITS = 0x0112, 258  # tags of EXIF and of TIFF
BACKGROUND = (255, 255, 255)  # transparent pixels are composed on white
DIMMEST = 1 / 4  # a 16-bit image whose lightest pixel is darker than this holds fewer bits than it says


class Facts(NamedTuple):
    """How an image file was stored."""

    mode: str
    """Pillow's name of its pixels: `L`, `RGB`, `P`, `CMYK`, `I;16`, ..."""
    size: tuple[int, int]
    """Width and height, as the file has them."""
    animated: bool
    """It has several frames or pages, of which the first is read."""
    rotated: bool
    """Its EXIF tag says how to turn it."""
    transparent: bool
    """It has an alpha channel or a transparent colour."""


def why_not_read(entry: os.DirEntry) -> str:
    """The reason why an entry of a folder is not an image to read; empty if it is one.

    Nothing is opened: neither a pipe, which would never answer, nor a device.
    """
    if is_hidden(entry.name):
        return "hidden"
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "broken links"
    if entry.is_dir():
        return "folders"
    if not entry.is_file():
        return "pipes, sockets or devices"
    suffix = os.path.splitext(entry.name)[1].lower()
    return "" if suffix in SUFFIXES else f"no image's ending ({printable(suffix[:12]) or 'none'})"


def is_hidden(name: str) -> bool:
    """Whether a name is hidden (`.DS_Store`, `._x.png`, `.ipynb_checkpoints`), or one that systems leave behind."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def printable(text: object) -> str:
    """A name for messages: as it is, or quoted with escapes where it would break the line."""
    return str(text) if str(text).isprintable() else ascii(str(text))


def described(skipped: Counter[str], most: int = 8) -> str:
    """What was skipped, in words: "broken links: 1; hidden: 3"; empty if nothing was."""
    named = dict(sorted(skipped.most_common(most)))
    named |= {"others": rest} if (rest := skipped.total() - sum(named.values())) else {}
    return "; ".join(f"{reason}: {count:,}" for reason, count in named.items())


def entries(folder: Path) -> list[os.DirEntry]:
    """What a folder holds, sorted by name. Raises `InputError` where it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"folder {printable(folder)} cannot be listed ({reason}); allowed: folders that may be read"
        ) from None


# -- pixels ------------------------------------------------------------------------------------------------------------


def open_image(path: Path, channels: int) -> tuple[Image.Image, Facts]:
    """An image file as grey (1 channel) or RGB (3), upright and opaque.

    The EXIF rotation is applied, transparency is composed on white, deep pixels are scaled to bytes (`_eight_bit`), and
    of several frames the first is taken. Whatever a decoder raises becomes an `InputError` that names the file.
    """
    if not path.is_file():  # before it is opened, as a pipe would never answer
        raise InputError(f"image {printable(path)} is not a file; allowed: an image file")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:  # warnings of odd metadata
            stored, bits = _stored_as(opened), _declared_bits(opened)  # before anything loads the image
            facts = Facts(
                mode=opened.mode,
                size=opened.size,
                animated=bool(getattr(opened, "is_animated", False)),
                rotated=opened.getexif().get(ORIENTATION, 1) != 1,
                transparent=_has_transparency(opened),
            )
            image = _eight_bit(ImageOps.exif_transpose(opened), stored=stored, bits=bits)
            image = _opaque(image) if facts.transparent else image
            return image.convert("L" if channels == 1 else "RGB"), facts
    except InputError as error:
        raise InputError(f"image {printable(path)} {error}") from None
    except Exception as error:  # decoders raise what they like
        reason = printable(next(iter(str(error).splitlines()), ""))
        reason = reason if isinstance(error, OSError) and reason else f"{type(error).__name__}: {reason}"
        raise InputError(f"image {printable(path)} cannot be read ({reason}); allowed: an intact image file") from None


def _has_transparency(image: Image.Image) -> bool:
    """Whether an image has an alpha channel, or a colour that is transparent."""
    by_palette = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info or by_palette


def _stored_as(image: Image.Image) -> str:
    """How the file stores its pixels ("RGB;16B"), which loading forgets."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _declared_bits(image: Image.Image) -> int:
    """The bits of a deep grey value, as far as the format says."""
    return image.tag_v2.get(TIFF_BITS, (16,))[0] if image.format == "TIFF" else 16


def _opaque(image: Image.Image) -> Image.Image:
    """The image on white."""
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*BACKGROUND, 255)), layer).convert("RGB")


def _eight_bit(image: Image.Image, *, stored: str, bits: int) -> Image.Image:
    """An image of deep pixels scaled to bytes by the range of its format, where Pillow would clip; others unchanged.

    16 bits: 0..65535. TIFF of 9 to 15 bits: what those bits hold. Floating point: 0..1. Other ranges are not known, and
    refused, as is a 16-bit image that uses the lower bits alone (a camera's 12, say): it would be read as black.
    """
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise InputError("holds floating-point values outside of 0..1; allowed: 0..1, or 8 or 16 bits per channel")
        return _grey(values * 255)
    if image.mode.startswith("I"):
        values, most = np.asarray(image).astype(np.int64), 2**bits - 1
        if bits > 16 or values.min() < 0 or values.max() > most:
            raise InputError("holds 32-bit integers, or negative ones; allowed: 8 or 16 bits per channel")
        if bits == 16:
            _require_all_bits(int(values.max()), most)
        values = np.where(values == image.info.get("transparency"), most, values)  # white
        return _grey(values * (255 / most))
    if ";16" in stored:  # colours, of which Pillow keeps the upper 8 bits, and the transparent one as it was
        _require_all_bits(int(np.asarray(image.convert("RGB")).max()), 255)
        if isinstance(colour := image.info.get("transparency"), tuple):
            image.info["transparency"] = tuple(value >> 8 for value in colour)
    return image


def _require_all_bits(highest: int, most: int) -> None:
    """Raise `InputError` for a 16-bit image that is dark because its values are smaller than 16 bits allow."""
    if 0 < highest < DIMMEST * most:
        raise InputError(
            f"has 16 bits per channel and uses {highest / most:.1%} of their range, as if it held fewer bits; "
            "allowed: values that use the range, or 8 bits per channel"
        )


def _grey(values: np.ndarray) -> Image.Image:
    """Values 0..255 (H,W) as a grey image."""
    return Image.fromarray(values.round().astype(np.uint8))


def pixels(image: Image.Image) -> Tensor:
    """A grey or RGB image as bytes (C,H,W)."""
    values = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)
    return values.permute(2, 0, 1).contiguous()


def square(image: Image.Image, size: int) -> Tensor:
    """An image resized to cover the square and cropped at its centre, as bytes (C,size,size)."""
    return pixels(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def require_grey_or_rgb(config: ModelConfig) -> None:
    """Raise `InputError` for a model of images that files do not hold."""
    require(config.channels in (1, 3), "model.channels", config.channels, "1 (grey) or 3 (RGB) for image files")


# -- images of the model's size ----------------------------------------------------------------------------------------


class Pictures(NamedTuple):
    """A user's own images: file names, bytes 0..255 (n,C,H,W), and labels (n,), -1 where the name gives none."""

    names: list[str]
    bytes: Tensor
    labels: Tensor


def image_files(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The image files that lie in a folder itself, sorted by name, and how many other things, by reason."""
    files, skipped = [], Counter()
    for entry in entries(folder):
        if reason := why_not_read(entry):
            skipped[reason] += 1
        else:
            files.append(Path(entry.path))
    return files, skipped


def read_pictures(path: str, config: ModelConfig, limit: int | None = None) -> Pictures:
    """Load the image files of a folder, all of the model's size: nothing is resized or cropped.

    `limit` caps their number and picks evenly spaced ones. A name such as `000003_class7.png`, as `farmer_ref.sample`
    writes it, gives the label.
    """
    root = Path(os.path.expanduser(path))
    if not os.path.isdir(root):
        raise InputError(f"images is {path!r}, which is not a folder; allowed: a folder of image files")
    files, skipped = image_files(root)
    if not files:
        found = f" ({described(skipped)})" if skipped else ""
        classes = f", or with folders of classes --dataset folder:{path}" if skipped["folders"] else ""
        raise InputError(
            f"images is {path!r}, which holds no image files{found}; allowed: {', '.join(sorted(SUFFIXES))}{classes}"
        )
    require_grey_or_rgb(config)
    count = len(files) if limit is None else min(limit, len(files))
    files = [files[i * len(files) // count] for i in range(count)]
    values = [read_picture(file, config.channels, config.image_size) for file in files]
    labels = [_label_of(file, config.num_classes) for file in files]
    if skipped:
        note_once(f"{printable(path)}: skipped {described(skipped)}")
    return Pictures([file.name for file in files], torch.stack(values), torch.tensor(labels))


def _label_of(file: Path, num_classes: int) -> int:
    """The label that a file's name gives, if any, in a model with labels."""
    named = re.search(r"_class(\d+)$", file.stem)
    if named is None or not num_classes:
        return NULL_LABEL
    label = int(named[1])
    require(label < num_classes, f"label of {printable(file)}", label, f"0 to {num_classes - 1}")
    return label


def read_picture(path: Path, channels: int, size: int) -> Tensor:
    """Load an image file of exactly size by size pixels as bytes (C,size,size)."""
    image, facts = open_image(path, channels)
    if image.size != (size, size):
        raise InputError(
            f"image {printable(path)} has {image.width}x{image.height} pixels; allowed: {size}x{size}, the model's"
        )
    if facts.animated:
        note_once(f"image {printable(path)} has several frames or pages: the first is read")
    return pixels(image)
