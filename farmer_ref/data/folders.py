"""Images in a user's folders: which files count, their classes, splits and pixels.

Images are bytes (C,H,W), values 0..255; labels are integers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from farmer_ref.model.config import ModelConfig
from farmer_ref.support.errors import InputError

SPLITS = ("train", "validation", "test")
SPLIT_SEED = 0
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


class FolderSet(Dataset):
    """Image files loaded on access: resized to cover the square, centre-cropped, converted to grey or RGB."""

    levels = 256

    def __init__(self, name: str, files: list[tuple[Path, int]], *, image_size: int, channels: int, num_classes: int):
        self.name, self.files, self.num_classes = name, files, num_classes
        self.image_size, self.channels = image_size, channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        image = _open_image(path, self.channels)
        return _pixels(ImageOps.fit(image, (self.image_size, self.image_size), Image.Resampling.BICUBIC)), label


def _open_image(path: Path, channels: int) -> Image.Image:
    """Load an image file as grey (1 channel) or RGB (3)."""
    try:
        with Image.open(path) as opened:
            return _eight_bit(opened).convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"image {path} cannot be read ({error}); allowed: an intact image file") from None


def _pixels(image: Image.Image) -> Tensor:
    """A grey or RGB image as bytes (C,H,W)."""
    values = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)
    return values.permute(2, 0, 1).contiguous()


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale a 16-bit grey image to 8 bits, where Pillow would clip it; return other images unchanged."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))


def folder_split(name: str, split: str, config: ModelConfig) -> FolderSet:
    """Use the folders train, val and test that exist; hold out each missing split (1 image in 20) from training."""
    root = Path(name.removeprefix("folder:"))
    if not root.is_dir():
        raise InputError(f"dataset is {name!r}, and {root} is not a folder; allowed: folder:PATH, where PATH exists")
    layout = {s: root / f for s in SPLITS for f in (s, "val" if s == "validation" else s) if (root / f).is_dir()}
    if "train" not in layout:
        layout = {"train": root}
    elif "validation" in layout and "test" not in layout:
        layout["test"] = layout.pop("validation")  # ImageNet's only held-out set serves as the test set
    if config.channels not in (1, 3):
        raise InputError(f"model.channels is {config.channels}; allowed: 1 (grey) or 3 (RGB) for a folder of images")
    classes = _class_names(layout["train"])
    files = _class_files(layout[split if split in layout else "train"], classes)
    held_out = [s for s in SPLITS if s not in layout]
    if split in held_out or split == "train":
        fold = np.random.default_rng(SPLIT_SEED).permutation(len(files)) % 20  # folds 0, 1, ... are held out
        kept = fold == held_out.index(split) if split in held_out else fold >= len(held_out)
        files = [file for file, keep in zip(files, kept, strict=True) if keep]
    if not files:
        raise InputError(f"dataset is {name!r}, which leaves no image for the {split} split; allowed: more images")
    return FolderSet(name, files, image_size=config.image_size, channels=config.channels, num_classes=len(classes))


def _class_names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_files(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The images below a folder of class folders, each labelled with its class's index among the training classes."""
    unknown = sorted(set(_class_names(root)) - set(classes))
    if unknown:
        raise InputError(f"{root / unknown[0]} is a class without training images; allowed: {', '.join(classes)}")
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise InputError(f"{root} holds no class folders with images; allowed: one folder per class, images inside")
    return files


class Pictures(NamedTuple):
    """A user's own images: file names, bytes 0..255 (n,C,H,W), and labels (n,), -1 where the name gives none."""

    names: list[str]
    bytes: Tensor
    labels: Tensor


def read_pictures(path: str, config: ModelConfig, limit: int | None = None) -> Pictures:
    """Load the image files of a folder, all of the model's size: nothing is resized or cropped.

    `limit` caps their number and picks evenly spaced ones. A name such as `000003_class7.png`, as `farmer_ref.sample`
    writes it, gives the label.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"images is {path!r}, which is not a folder; allowed: a folder of image files")
    files = sorted(file for file in root.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"images is {path!r}, which holds no image files; allowed: {', '.join(sorted(SUFFIXES))}")
    if config.channels not in (1, 3):
        raise InputError(f"model.channels is {config.channels}; allowed: 1 (grey) or 3 (RGB) for a folder of images")
    count = len(files) if limit is None else min(limit, len(files))
    files = [files[i * len(files) // count] for i in range(count)]
    pixels, labels = [], []
    for file in files:
        pixels.append(read_picture(file, config.channels, config.image_size))
        named = re.search(r"_class(\d+)$", file.stem)
        labels.append(int(named[1]) if named else -1)
    return Pictures([file.name for file in files], torch.stack(pixels), torch.tensor(labels))


def read_picture(path: Path, channels: int, size: int) -> Tensor:
    """Load an image file of exactly size x size pixels as bytes (C,size,size)."""
    image = _open_image(path, channels)
    if image.size != (size, size):
        raise InputError(f"image {path} has {image.width}x{image.height} pixels; allowed: {size}x{size}, the model's")
    return _pixels(image)
