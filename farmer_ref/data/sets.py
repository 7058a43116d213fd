"""Named data sets and their splits.

Images are bytes (C,H,W), values 0..levels-1; labels are integers. The splits (train, validation, test) do not overlap,
and every choice is made on validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from farmer_ref.data.folders import SPLIT_SEED, SPLITS, FolderSet, folder_split, listed
from farmer_ref.model.config import ModelConfig
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.files import PRETRAINED

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar10-crops": "CIFAR10"}
CROP = 16  # side of "cifar10-crops", the centre of each image: natural images that a laptop can model
_DIGITS = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CLASS_NAMES = {
    "digits": _DIGITS,
    **{f"digits-without-{k}": _DIGITS for k in _DIGITS},
    "photographs": ("china", "flower"),
    "mnist": _DIGITS,
    "mnist-small": _DIGITS,
    "fashion-mnist": _FASHION,
    "cifar10": _CIFAR10,
    "cifar10-crops": _CIFAR10,
}
"""The names of the classes of named data sets, in the order of their labels."""
TORCHVISION_VALIDATION = 5000  # the last images of a fixed shuffle of the published training set


class ImageSet(Dataset):
    """One split in memory: `values`, bytes (n,C,H,W), and `labels` (n,)."""

    def __init__(self, name: str, values: Tensor, labels: Tensor, *, levels: int, num_classes: int):
        self.name, self.values, self.labels = name, values, labels
        self.levels, self.num_classes = levels, num_classes
        self.channels, self.image_size = values.shape[1], values.shape[2]
        self.class_names = CLASS_NAMES.get(name, ())
        self.splits = None  # fixed by the name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.values[index], int(self.labels[index])

    def present(self) -> list[int]:
        """The labels that have images, in order."""
        return self.labels.unique().tolist()

    def numbered_as(self, names: tuple[str, ...]) -> ImageSet:
        """The same images, each class with the label that its name has among `names`."""
        for label in self.present():
            require(self.class_names[label] in names, f"a class of {self.name}", self.class_names[label], listed(names))
        new = torch.tensor([names.index(c) if c in names else -1 for c in self.class_names])
        data = ImageSet(self.name, self.values, new[self.labels], levels=self.levels, num_classes=len(names))
        data.class_names = names
        return data


ImageData = ImageSet | FolderSet
"""One split of a data set."""


def load_split(
    name: str, split: str, config: ModelConfig, *, data_root: str = "data", download: bool = True
) -> ImageData:
    """One split ("train", "validation", "test") of a data set, checked against the model's configuration.

    `name`: "digits" (scikit-learn's 1,797 images of 8x8 with 17 grey levels, no download), "digits-without-K" (all but
    class K, to train a model to which K is anomalous), "photographs" (square crops of scikit-learn's two, no download),
    "mnist-small" (500 images of MNIST that ship with the package: 100, 100 and 300 of the three splits of "mnist"),
    "mnist", "fashion-mnist", "cifar10" (from torchvision, under `data_root`), "cifar10-crops" (their central 16x16,
    with bits/dim of its own), or "folder:PATH" (one folder of images per class; or such folders in train, val, test, as
    in ImageNet). Classes are numbered by their names, as the model's are where it stores them. Raises `InputError` for
    data that is missing or does not fit the model.
    """
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; allowed: {', '.join(SPLITS)}")
    data: ImageData
    if name == "digits":
        data = _digits(split)
    elif name.startswith("digits-without-") and name in CLASS_NAMES:
        data = _digits(split)
        kept = data.labels != int(name[-1])
        data = ImageSet(name, data.values[kept], data.labels[kept], levels=data.levels, num_classes=data.num_classes)
    elif name == "photographs":
        data = _photographs(split, config.image_size)
    elif name == "mnist-small":
        data = _mnist_small(split)
    elif name in TORCHVISION:
        data = _torchvision(name, split, data_root, download)
    elif name.startswith("folder:"):
        data = folder_split(name, split, config)
    else:
        known = ("digits", "digits-without-K", "photographs", "mnist-small", *TORCHVISION, "folder:PATH")
        raise InputError(f"dataset is {name!r}; allowed: {', '.join(known)}")
    for field in ("image_size", "channels", "levels"):
        if getattr(data, field) != getattr(config, field):
            raise InputError(
                f"model.{field} is {getattr(config, field)}; allowed: {getattr(data, field)}, as in {name}"
            )
    if isinstance(data, ImageSet) and data.class_names and config.class_names not in ((), data.class_names):
        data = data.numbered_as(config.class_names)
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


def _mnist_small(split: str) -> ImageSet:
    """Tiles of the PNG mosaic beside the shipped MNIST model, whose labels say how many belong to each split."""
    folder = PRETRAINED / "mnist"
    index = json.loads((folder / "images.json").read_text(encoding="utf-8"))
    with Image.open(folder / "images.png") as picture:
        mosaic = torch.from_numpy(np.array(picture))  # (rows * 28, columns * 28)
    side = mosaic.shape[1] // index["columns"]
    tiles = mosaic.unfold(0, side, side).unfold(1, side, side).flatten(0, 1)  # (n,H,W)
    sizes = [len(labels) for labels in index["labels"].values()]
    values = dict(zip(index["labels"], tiles.split(sizes), strict=True))[split][:, None].contiguous()
    labels = torch.tensor(index["labels"][split])
    return ImageSet("mnist-small", values, labels, levels=256, num_classes=10)


def _photographs(split: str, image_size: int) -> ImageSet:
    """Square crops of scikit-learn's two photographs (427x640), one class each: natural colours, no download.

    Training crops come every 4 pixels from the left 70% of both; the next 15% is for validation and the rest for
    testing, in crops that do not overlap.
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
            f"data_root is {data_root!r}, which holds no complete {name} ({reason}); allowed: its folder, or --download"
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


def evenly_spread(size: int, limit: int | None) -> list[int]:
    """The places of at most `limit` of `size` images, spread evenly: the files of a folder are sorted by class."""
    count = size if limit is None else min(limit, size)
    return [i * size // count for i in range(count)]


def batches(
    data: ImageData, batch_size: int, limit: int | None = None, turn: int = 0, turns: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """A split in batches of values (B,C,H,W) and labels (B,); `limit` caps the images and picks evenly spaced ones.

    Where `turns` processes take batches in turn, only those of process `turn`.
    """
    chosen = evenly_spread(len(data), limit)
    for start in range(turn * batch_size, len(chosen), turns * batch_size):
        rows = [data[i] for i in chosen[start : start + batch_size]]
        yield torch.stack([image for image, _ in rows]), torch.tensor([label for _, label in rows])
