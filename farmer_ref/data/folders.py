"""A user's folder of images: its classes, its splits, and what of it is read.

The book's page "Your own pictures" says what a folder means; this module is that page.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from farmer_ref.data.images import (
    described,
    entries,
    is_hidden,
    open_image,
    printable,
    require_grey_or_rgb,
    square,
    why_not_read,
)
from farmer_ref.model.config import ModelConfig
from farmer_ref.support.errors import InputError
from farmer_ref.support.parallel import note_once, rank
from farmer_ref.support.settings import Whole, settings_class

Split = Literal["train", "validation", "test"]
SPLITS = get_args(Split)
SPLIT_SEED = 0
SPLIT_FOLDERS = {  # in any case
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ONE_IN = 20  # images, for each split that has no folder


@settings_class
class SplitRecord:
    """What a split held when a run read it; config.json keeps it, so that a change is noticed."""

    images: Whole
    """How many."""
    digest: str
    """A hash of their paths within the folder and their sizes in bytes."""


class FolderSet(Dataset):
    """Image files loaded on access: resized to cover the square, centre-cropped, converted to grey or RGB."""

    levels = 256

    def __init__(
        self,
        name: str,
        files: list[tuple[Path, int]],
        *,
        image_size: int,
        channels: int,
        class_names: tuple[str, ...],
        splits: dict[str, SplitRecord],
    ):
        """`class_names` are those of all labels, with files or without; `splits` describes all of the folder."""
        self.name, self.files, self.class_names, self.splits = name, files, class_names, splits
        self.num_classes, self.image_size, self.channels = len(class_names), image_size, channels
        self._noted = torch.full((1,), rank() > 0).share_memory_()  # shared with the processes that read images

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        image, facts = open_image(path, self.channels)
        if facts.animated and not self._noted:
            self._noted.fill_(True)
            note_once(f"{printable(path)} and perhaps others have several frames or pages: the first is read")
        return square(image, self.image_size), label

    def name_of(self, index: int) -> str:
        """The path of an image within the folder."""
        return str(self.files[index][0].relative_to(folder_of(self.name)))

    def present(self) -> list[int]:
        """The labels that have images, in order."""
        return sorted({label for _, label in self.files})


def folder_split(name: str, split: str, config: ModelConfig) -> FolderSet:
    """One split of the folder `folder:PATH`, its classes numbered by their names as the model's are.

    A model that stores no names, and one without labels, gets the folder's own order. A split that is held out from few
    images may be empty.
    """
    require_grey_or_rgb(config)
    folder = ImageFolder(name)
    members = folder.split(split)
    own = folder.class_names()
    names = config.class_names or own
    unknown = [c for c in members if c not in names]
    if unknown and config.class_names:
        raise InputError(
            f"dataset is {name!r}, whose class {unknown[0]} the model does not have; allowed: {listed(names)}"
        )
    if unknown:
        where = folder.splits[split]
        raise InputError(f"{where / unknown[0]} is a class without training images; allowed: {listed(own)}")
    labels = {c: label for label, c in enumerate(names)}
    files = [(file.path, labels[c]) for c in sorted(members, key=labels.__getitem__) for file in members[c]]
    if not files:  # by chance, in a small folder
        note_once(f"{printable(name)} has no image in its {split} split: add images, or a folder {split}")
    splits = folder.records()  # reads all of it, so that all that is skipped is counted
    if folder.skipped:
        note_once(f"{printable(name)}: skipped {described(folder.skipped)}")
    if not folder.flat and len(folder.splits) == 1:
        note_once(f"{printable(name)} holds {folder.layout()}")
    return FolderSet(
        name,
        files,
        image_size=config.image_size,
        channels=config.channels,
        class_names=names,
        splits=splits,
    )


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names of classes for a message, the first few of many."""
    return ", ".join(names[:most]) + f" and {len(names) - most:,} more" * (len(names) > most)


def counted(number: int, thing: str) -> str:
    """A number of things for a message: "1 image", "2 images", "3 classes"."""
    ending = "es" if thing.endswith("s") else "s"
    return f"{number:,} {thing}{ending * (number != 1)}"


def folder_of(name: str) -> Path:
    """The PATH of `folder:PATH`."""
    return Path(os.path.expanduser(name.removeprefix("folder:")))


class ImageFile(NamedTuple):
    """An image file of a class."""

    path: Path
    place: str
    """Its path within the folder of its split, which decides whether it is held out: "cat/outdoors/3.png"."""
    size: int
    """In bytes."""
    drawn: int
    """A hash of the place, 0 .. ONE_IN - 1: it decides the split, whatever else the folder holds."""


Members = dict[str, list[ImageFile]]
"""Image files by class."""


class ImageFolder:
    """What a folder holds, by split and class: names and sizes only, no file is opened."""

    def __init__(self, name: str):
        """Read the folder's structure from `folder:PATH`. Raises `InputError` where PATH is none."""
        self.name, self.skipped = name, Counter[str]()
        given = name != "folder:"
        self.root = folder_of(name)
        if not given or not os.path.isdir(self.root):
            raise InputError(
                f"dataset is {name!r}, and {printable(self.root) if given else 'nothing'} is not a folder; "
                "allowed: folder:PATH, where PATH exists (--dataset, if it has moved)"
            )
        self._known = [os.path.realpath(self.root)]  # the real paths of folders that are read, with all in them
        self._listed, self._read = dict[Path, list[os.DirEntry]](), dict[str, Members | InputError]()
        self.splits: dict[str, Path] = {}
        for entry in (top := self._folders(self.root)):
            split = SPLIT_FOLDERS.get(entry.name.lower())
            if split in self.splits:
                both = f"{self.splits[split].name} and {entry.name}"
                raise InputError(f"dataset is {name!r}, which holds {both}; allowed: one folder for the {split} split")
            if split:
                self.splits[split] = Path(entry.path)
        self.flat = not self.splits
        if self.flat:
            self.splits["train"] = self.root
        elif others := [printable(entry.name) for entry in top if entry.name.lower() not in SPLIT_FOLDERS]:
            self.skipped[f"folders beside those of the splits ({listed(others)})"] += len(others)
        if not self.flat:  # what lies beside the splits is not read, unless links lead there
            self._known = [os.path.realpath(folder) for folder in self.splits.values()]
        if "validation" in self.splits and "test" not in self.splits:
            self.splits["test"] = self.splits.pop("validation")  # ImageNet's only held-out set serves as the test set

    def layout(self) -> str:
        """Where the splits come from, in words."""
        if "train" not in self.splits:
            return f"the folder {self._found()} alone"
        lacking = " and ".join(split for split in SPLITS if split not in self.splits)
        held_out = f"; {lacking} held out from it by name, about 1 image in {ONE_IN} each" if lacking else ""
        return ("one folder per class" if self.flat else f"folders {self._found()}") + held_out

    def _found(self) -> str:
        return " and ".join(printable(path.name) for path in self.splits.values())

    def split(self, split: str) -> Members:
        """The images of a split by class; without a folder of its own, those held out from training.

        Raises `InputError` where a folder does not hold one folder of images per class.
        """
        if split in self.splits and split != "train":
            return self._of(split)
        if "train" not in self.splits:
            raise InputError(
                f"dataset is {self.name!r}, which holds {self._found()} and no folder train, for the {split} split; "
                "allowed: one folder per class, or such folders in train, val and test"
            )
        kept = {c: [file for file in files if self._split_of(file) == split] for c, files in self._of("train").items()}
        return {c: files for c, files in kept.items() if files}

    def class_names(self) -> tuple[str, ...]:
        """The classes of the training images (or of the only split), in order."""
        return tuple(sorted(self._of("train" if "train" in self.splits else next(iter(self.splits)))))

    def records(self) -> dict[str, SplitRecord]:
        """What the splits hold; those that cannot be read are left out."""
        found = {}
        for split in SPLITS:
            try:
                members = self.split(split)
            except InputError:
                continue
            files = sorted((file.place, file.size) for part in members.values() for file in part)
            lines = "".join(f"{place}\n{size}\n" for place, size in files)
            digest = hashlib.blake2b(lines.encode(errors="surrogateescape"), digest_size=16).hexdigest()
            found[split] = SplitRecord(images=len(files), digest=digest)
        return found

    def _split_of(self, file: ImageFile) -> str:
        """The split of an image in the training folder."""
        split = {0: "validation", 1: "test"}.get(file.drawn, "train")
        return split if split not in self.splits else "train"

    def _of(self, split: str) -> Members:
        """The images in the folder of a split, by class, read once."""
        if split not in self._read:
            try:
                self._read[split] = self._members(self.splits[split])
            except InputError as error:
                self._read[split] = error
        members = self._read[split]
        if isinstance(members, InputError):
            raise members
        return members

    def _members(self, root: Path) -> Members:
        members: Members = {}
        for entry in self._folders(root):
            name = unicodedata.normalize("NFC", entry.name)  # as the same name is spelled on a Mac, and elsewhere
            if not name.isprintable():
                raise InputError(f"class is {entry.name!a}; allowed: names of folders that can be printed")
            if name in members:
                raise InputError(f"class {name} is there twice in {printable(root)}; allowed: one folder for each")
            before = self.skipped.copy()
            members[name] = sorted(self._files(Path(entry.path), name), key=lambda file: file.place)
            if not members[name]:
                skipped = described(self.skipped - before)
                raise InputError(
                    f"{printable(entry.path)} is a class without images{f' ({skipped})' if skipped else ''}; "
                    "allowed: image files in every folder of a class"
                )
        if not members:
            raise InputError(self._no_classes(root))
        return members

    def _no_classes(self, root: Path) -> str:
        """Why a folder has no classes, in one line."""
        images = sum(not why_not_read(entry) for entry in entries(root))
        if images and not self.flat:
            return (
                f"{printable(root)} holds {images:,} images and no folders, and its name is a split's; "
                "allowed: one folder per class in it, or another name if it is itself a class"
            )
        if images:
            return (
                f"{printable(root)} holds {counted(images, 'image')} and no folders; allowed: one folder per class, "
                "images inside (to train without labels: one for all, and --model.num-classes 0)"
            )
        return f"{printable(root)} holds no class folders with images; allowed: one folder per class, images inside"

    def _folders(self, folder: Path) -> list[os.DirEntry]:
        """The folders in a folder, listed once; what else lies there is skipped, and counted."""
        if folder not in self._listed:
            self._listed[folder] = []
            for entry in entries(folder):
                reason = self._why_skipped(entry)
                if reason == "folders":
                    self._listed[folder].append(entry)
                else:
                    self.skipped[reason or "images outside of the folders of classes"] += 1
        return self._listed[folder]

    def _files(self, folder: Path, place: str) -> Iterator[ImageFile]:
        """The image files below a folder, at any depth."""
        for entry in entries(folder):
            inside = f"{place}/{unicodedata.normalize('NFC', entry.name)}"
            reason = self._why_skipped(entry)
            if reason == "folders":
                yield from self._files(Path(entry.path), inside)
            elif reason:
                self.skipped[reason] += 1
            else:
                yield ImageFile(Path(entry.path), inside, entry.stat().st_size, _drawn(inside))

    def _why_skipped(self, entry: os.DirEntry) -> str:
        """`why_not_read`, and links to what is read anyway: circles, and images that would be in two splits."""
        reason = why_not_read(entry)
        if entry.is_symlink() and reason in ("", "folders"):
            target = os.path.realpath(entry.path)
            if any(_read_within(target, folder) for folder in self._known):
                return "links to what is read already"
            if reason == "folders":
                if any(_read_within(folder, target) for folder in self._known):
                    return "links to a folder around this one"
                self._known.append(target)
        return reason


def _drawn(place: str) -> int:
    """A number from 0 to ONE_IN - 1, a function of a place and of SPLIT_SEED alone."""
    key = f"{SPLIT_SEED}/{place}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % ONE_IN


def _read_within(path: str, folder: str) -> bool:
    """Whether a real path is that of a folder or below it, where nothing is hidden."""
    if path != folder and not path.startswith(folder.rstrip(os.sep) + os.sep):
        return False
    return not any(is_hidden(part) for part in path[len(folder) :].split(os.sep) if part)
