"""Data sets with named splits, and the order in which training reads them.

Images are bytes, (C,H,W), values 0 .. levels-1; labels are integers. Splits are train, validation, test: what is
chosen is chosen on validation, and no split of one overlaps another.
"""

from __future__ import annotations

import atexit
import hashlib
import multiprocessing
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from farmer_ref.config import ModelConfig
from farmer_ref.errors import InputError

SPLITS = ("train", "validation", "test")
SPLIT_SEED = 0
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar10-crops": "CIFAR10"}
CROP = 16  # side of "cifar10-crops", the middle of each image: natural images for a model that a laptop can train
TORCHVISION_VALIDATION = 5000  # the last images of a fixed shuffle of the published training set
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


class ImageSet(Dataset):
    """One split in memory: `values` bytes (n,C,H,W) and `labels` (n,)."""

    def __init__(self, name: str, values: Tensor, labels: Tensor, levels: int, num_classes: int):
        self.name, self.values, self.labels = name, values, labels
        self.levels, self.num_classes = levels, num_classes
        self.channels, self.image_size = values.shape[1], values.shape[2]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.values[index], int(self.labels[index])


class FolderSet(Dataset):
    """Image files read when asked for: resized to cover the square, cropped at the centre; grey and palette to RGB."""

    levels = 256

    def __init__(self, name: str, files: list[tuple[Path, int]], image_size: int, channels: int, num_classes: int):
        self.name, self.files, self.num_classes = name, files, num_classes
        self.image_size, self.channels = image_size, channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        image = _open_image(path, self.channels)
        return _pixels(ImageOps.fit(image, (self.image_size, self.image_size), Image.Resampling.BICUBIC)), label


def _open_image(path: Path, channels: int) -> Image.Image:
    """An image file, as grey (1 channel) or RGB (3)."""
    try:
        with Image.open(path) as opened:
            return _eight_bit(opened).convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"image {path} cannot be read ({error}); allowed: a whole image file") from None


def _pixels(image: Image.Image) -> Tensor:
    """Bytes (C,H,W) of a grey or RGB image."""
    values = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)
    return values.permute(2, 0, 1).contiguous()


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey images scaled to 8 bits, which Pillow would clip; the others as they are."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))


def load_split(
    name: str, split: str, config: ModelConfig, data_root: str = "data", download: bool = True
) -> ImageSet | FolderSet:
    """One split ("train", "validation", "test") of a data set, checked against the model that will read it.

    `name`: "digits" (scikit-learn's 1,797 images of 8x8 and 17 grey levels, no download), "digits-without-K" (all but
    class K, to learn what is normal when K is not), "photographs" (square crops of scikit-learn's two, no download),
    "mnist", "fashion-mnist", "cifar10" (torchvision's, under `data_root`), "cifar10-crops" (the middle 16x16 of these:
    bits/dim of its own), or "folder:PATH" (a folder of images per class; or folders train, val, test of such, as
    ImageNet's). Raises `InputError` for what is missing or does not fit.
    """
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; allowed: {', '.join(SPLITS)}")
    data: ImageSet | FolderSet
    if name == "digits":
        data = _digits(split)
    elif name in (without := [f"digits-without-{k}" for k in range(10)]):
        data = _digits(split)
        kept = data.labels != without.index(name)
        data = ImageSet(name, data.values[kept], data.labels[kept], data.levels, data.num_classes)
    elif name == "photographs":
        data = _photographs(split, config.image_size)
    elif name in TORCHVISION:
        data = _torchvision(name, split, data_root, download)
    elif name.startswith("folder:"):
        data = _folder(name, split, config)
    else:
        known = ("digits", "digits-without-K", "photographs", *TORCHVISION, "folder:PATH")
        raise InputError(f"dataset is {name!r}; allowed: {', '.join(known)}")
    for field in ("image_size", "channels", "levels"):
        if getattr(data, field) != getattr(config, field):
            raise InputError(
                f"model.{field} is {getattr(config, field)}; allowed: {getattr(data, field)}, as in {name}"
            )
    if data.num_classes > config.num_classes > 0:
        raise InputError(
            f"model.num_classes is {config.num_classes}; allowed: {data.num_classes} or more (the labels of {name}), "
            "or 0 to train without labels"
        )
    return data


def _digits(split: str) -> ImageSet:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    index = np.arange(len(digits.target))
    rest, test = train_test_split(index, test_size=300, stratify=digits.target, random_state=SPLIT_SEED)
    train, validation = train_test_split(rest, test_size=100, stratify=digits.target[rest], random_state=SPLIT_SEED)
    chosen = {"train": train, "validation": validation, "test": test}[split]
    values = torch.from_numpy(digits.images[chosen]).to(torch.uint8)[:, None]
    return ImageSet("digits", values, torch.from_numpy(digits.target[chosen]).long(), levels=17, num_classes=10)


def _photographs(split: str, image_size: int) -> ImageSet:
    """Square crops of scikit-learn's two photographs (427x640), each its own class: real colours, no download.

    The left 70% of both are for training, with a crop every 4 pixels; the next 15% for validation and the rest for
    testing, with crops that do not overlap.
    """
    from sklearn.datasets import load_sample_images

    begin, end = {"train": (0, 448), "validation": (448, 544), "test": (544, 640)}[split]
    if image_size > 96:
        raise InputError(f"model.image_size is {image_size}; allowed: at most 96, as in photographs")
    stride, values, labels = 4 if split == "train" else image_size, [], []
    for label, photograph in enumerate(load_sample_images().images):
        part = torch.from_numpy(photograph[:, begin:end].copy()).permute(2, 0, 1)  # (3,427,width)
        crops = part.unfold(1, image_size, stride).unfold(2, image_size, stride)  # (3,down,across,H,W)
        values.append(crops.permute(1, 2, 0, 3, 4).reshape(-1, 3, image_size, image_size))
        labels.append(torch.full((len(values[-1]),), label))
    return ImageSet("photographs", torch.cat(values), torch.cat(labels), levels=256, num_classes=2)


def _torchvision(name: str, split: str, data_root: str, download: bool) -> ImageSet:
    import torchvision

    try:
        published = getattr(torchvision.datasets, TORCHVISION[name])(
            data_root, train=split != "test", download=download
        )
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"data_root is {data_root!r}, which holds no whole {name} ({reason}); allowed: its folder, or --download"
        ) from None
    values = torch.as_tensor(published.data)
    values = values[:, None] if values.dim() == 3 else values.permute(0, 3, 1, 2).contiguous()
    if name == "cifar10-crops":
        border = (values.shape[-1] - CROP) // 2
        values = values[:, :, border : border + CROP, border : border + CROP].contiguous()
    labels = torch.as_tensor(published.targets).long()
    if split != "test":
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
        validation = order[-TORCHVISION_VALIDATION:]
        chosen = validation if split == "validation" else order[:-TORCHVISION_VALIDATION]
        values, labels = values[chosen], labels[chosen]
    return ImageSet(name, values, labels, levels=256, num_classes=10)


def _folder(name: str, split: str, config: ModelConfig) -> FolderSet:
    """Folders train / val / test where they exist; what is missing is held out from the training images (1 in 20)."""
    root = Path(name.removeprefix("folder:"))
    if not root.is_dir():
        raise InputError(f"dataset is {name!r}, and {root} is no folder; allowed: folder:PATH of an existing folder")
    layout = {s: root / f for s in SPLITS for f in (s, "val" if s == "validation" else s) if (root / f).is_dir()}
    if "train" not in layout:
        layout = {"train": root}
    elif "validation" in layout and "test" not in layout:
        layout["test"] = layout.pop("validation")  # ImageNet publishes one held-out set: it is the test set
    if config.channels not in (1, 3):
        raise InputError(f"model.channels is {config.channels}; allowed: 1 (grey) or 3 (RGB) for a folder of images")
    classes = _class_names(layout["train"])
    files = _class_files(layout[split if split in layout else "train"], classes)
    held_out = [s for s in SPLITS if s not in layout]
    if split in held_out or split == "train":
        fold = np.random.default_rng(SPLIT_SEED).permutation(len(files)) % 20  # the first are the held-out splits
        kept = fold == held_out.index(split) if split in held_out else fold >= len(held_out)
        files = [file for file, keep in zip(files, kept, strict=True) if keep]
    if not files:
        raise InputError(f"dataset is {name!r}, which leaves no image for the {split} split; allowed: more images")
    return FolderSet(name, files, config.image_size, config.channels, len(classes))


def _class_names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_files(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The images below a folder of class folders, with their labels: a class's place among the training classes."""
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
    """A user's own images: file names, bytes 0..255 (n,C,H,W), and labels (n,), -1 where the name tells none."""

    names: list[str]
    bytes: Tensor
    labels: Tensor


def read_pictures(path: str, config: ModelConfig, limit: int | None = None) -> Pictures:
    """The image files of one folder, each of the model's size: nothing is scaled or cropped.

    At most `limit`, spread evenly. A name like `000003_class7.png`, as `farmer_ref.sample` gives them, tells the label.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"images is {path!r}, which is no folder; allowed: a folder of image files")
    files = sorted(file for file in root.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"images is {path!r}, which holds no image files; allowed: {', '.join(sorted(SUFFIXES))}")
    if config.channels not in (1, 3):
        raise InputError(f"model.channels is {config.channels}; allowed: 1 (grey) or 3 (RGB) for a folder of images")
    size = len(files) if limit is None else min(limit, len(files))
    files = [files[i * len(files) // size] for i in range(size)]
    pixels, labels = [], []
    for file in files:
        pixels.append(read_picture(file, config.channels, config.image_size))
        named = re.search(r"_class(\d+)$", file.stem)
        labels.append(int(named[1]) if named else -1)
    return Pictures([file.name for file in files], torch.stack(pixels), torch.tensor(labels))


def read_picture(path: Path, channels: int, size: int) -> Tensor:
    """Bytes (C,size,size) of an image file of that very size."""
    image = _open_image(path, channels)
    if image.size != (size, size):
        raise InputError(f"image {path} has {image.width}x{image.height} pixels; allowed: {size}x{size}, the model's")
    return _pixels(image)


# -- the order of training: what happens to sample k of step t depends on (seed, t, k) alone ---------------------------


def random_seed(*key: object) -> int:
    """A seed for `torch.Generator` that is a function of the key alone, such as (seed, step, k)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


class Batch(NamedTuple):
    """Training images of one step, or those of one process: bytes (B,C,H,W) and labels (B,)."""

    step: int
    values: Tensor
    labels: Tensor
    first: int = 0
    """The place in the step's whole batch at which these images begin."""

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in `count` equal parts."""
        size = len(self.labels) // count
        for start in range(0, len(self.labels), size):
            rows = slice(start, start + size)
            yield Batch(self.step, self.values[rows], self.labels[rows], self.first + start)


class _StepOrder(Sampler):
    """For each step from `start` on, its samples k in `rows` as (step, k, index); every epoch has its own shuffle."""

    def __init__(self, size: int, batch_size: int, seed: int, start: int, rows: range):
        self.size, self.batch_size, self.seed, self.start, self.rows = size, batch_size, seed, start, rows

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        step, epoch, order = self.start, -1, torch.empty(0)
        while True:
            samples = []
            for k in self.rows:
                wanted, offset = divmod(step * self.batch_size + k, self.size)
                if wanted != epoch:
                    generator = torch.Generator().manual_seed(random_seed(self.seed, "epoch", wanted))
                    epoch, order = wanted, torch.randperm(self.size, generator=generator)
                samples.append((step, k, int(order[offset])))
            yield samples
            step += 1


class _TrainingSamples(Dataset):
    """Reads the samples of a step, mirrored at random where `flip`."""

    def __init__(self, data: ImageSet | FolderSet, seed: int, flip: bool):
        self.data, self.seed, self.flip = data, seed, flip

    def __getitems__(self, samples: list[tuple[int, int, int]]) -> Batch | InputError:
        values, labels = [], []
        try:
            for step, k, index in samples:
                image, label = self.data[index]
                mirrored = self.flip and random_seed(self.seed, "flip", step, k) % 2
                values.append(image.flip(-1) if mirrored else image)
                labels.append(label)
        except InputError as error:  # raised again by the main process, where it stays one line
            return error
        step, first, _ = samples[0]
        return Batch(step, torch.stack(values), torch.tensor(labels), first)


def _as_read(batch: Batch | InputError) -> Batch | InputError:
    """The loader's collate function, by name so that workers can start anywhere: a batch is whole already."""
    return batch


def _leave_signals_to_the_parent(_: int) -> None:
    """A worker ends when the process that it reads for does: a signal to all must not cut off the last checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """End the workers at exit, where SIGTERM, which they ignore, is all that multiprocessing would try."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def training_batches(
    data: ImageSet | FolderSet,
    batch_size: int,
    seed: int,
    start: int,
    flip: bool = False,
    workers: int = 0,
    rows: range | None = None,
) -> Iterator[Batch]:
    """The batches of steps start, start + 1, ... without end; of each, the rows of this process (None: all)."""
    loader = DataLoader(
        _TrainingSamples(data, seed, flip),
        batch_sampler=_StepOrder(len(data), batch_size, seed, start, rows or range(batch_size)),
        collate_fn=_as_read,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_parent,
    )
    batches = iter(loader)
    if workers:  # after multiprocessing's own: what is registered last runs first
        atexit.register(_end_workers)
    try:
        while True:
            try:
                batch = next(batches)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise InputError(f"workers is {workers}, and one was killed ({error}); allowed: fewer, or 0") from error
            if isinstance(batch, InputError):
                raise batch
            yield batch
    finally:
        del batches  # now, not when the traceback goes: it ends the workers


def batches(
    data: ImageSet | FolderSet, batch_size: int, limit: int | None = None, turn: int = 0, turns: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """A split in batches of values (B,C,H,W) and labels (B,); at most `limit` images, spread evenly over it.

    Evenly, since the files of a folder are sorted by class. Where `turns` processes take batches in turn, those of
    number `turn`.
    """
    size = len(data) if limit is None else min(limit, len(data))
    chosen = [i * len(data) // size for i in range(size)]
    for start in range(turn * batch_size, size, turns * batch_size):
        rows = [data[i] for i in chosen[start : start + batch_size]]
        yield torch.stack([image for image, _ in rows]), torch.tensor([label for _, label in rows])
