"""Look at a folder before you train on it: `python -m farmer_ref.data folder:PATH`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from pydantic import PositiveInt
from torch import Tensor
from tqdm import tqdm
from tyro.conf import Positional

from farmer_ref.data.folders import SPLITS, ImageFile, ImageFolder, Members, counted, listed
from farmer_ref.data.images import Facts, described, open_image, printable, square
from farmer_ref.data.sets import evenly_spread
from farmer_ref.support import cli
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.files import output_file
from farmer_ref.support.plots import image_grid, save_picture
from farmer_ref.support.settings import settings_class

DESCRIPTION = """Print what training would read of a folder of images, and draw a contact sheet.

Classes with their images in each split, sizes, modes, images that two splits share, what is skipped, and what cannot be
read (then the exit code is 2). Nothing is trained, and nothing but the contact sheet is written."""
SHOWN_CLASSES, SHOWN_IMAGES = 20, 8  # rows and columns of the contact sheet
MOST_PROBLEMS = 10  # printed


@settings_class
class LookConfig:
    """What to look at."""

    dataset: Positional[str] = ""
    """folder:PATH, as for `train`."""
    out: str = "contact_sheet.png"
    """The contact sheet: a row per class, of training images as a model would see them."""
    image_size: PositiveInt = 64
    """The images of the contact sheet are resized and cropped to this many pixels a side."""
    images: PositiveInt = 2000
    """At most this many images are opened, evenly spaced; the others are counted by their names alone."""


@dataclass
class Found:
    """What opening images has found."""

    facts: list[Facts] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    places: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """The splits and places of images with the same pixels, by a hash of these."""

    def leaks(self) -> list[str]:
        """The images that two splits have, in words: figures of the second are too good."""
        return [
            f"{printable(place)} ({split}) = {printable(same[0][1])} ({same[0][0]})"
            for same in self.places.values()
            for split, place in same
            if split != same[0][0]
        ]

    def lines(self, total: int) -> Iterator[str]:
        """The sizes, modes and peculiarities of the images, in words; `total` counts those not opened, too."""
        if self.facts:
            modes = Counter(facts.mode for facts in self.facts)
            sizes = sorted((facts.size for facts in self.facts), key=lambda size: size[0] * size[1])
            chosen = dict.fromkeys((sizes[0], sizes[len(sizes) // 2], sizes[-1]))
            yield (
                f"of {len(self.facts):,} images opened: sizes {', '.join(f'{w}x{h}' for w, h in chosen)} (smallest, "
                f"median, largest); modes {', '.join(f'{mode} {count:,}' for mode, count in modes.most_common())}"
            )
        for name, remark in (
            ("rotated", "turned as their EXIF tag says"),
            ("transparent", "with transparency, composed on white"),
            ("animated", "with several frames or pages, of which the first is read"),
        ):
            if count := sum(getattr(facts, name) for facts in self.facts):
                yield f"{count:,} {remark}"
        if leaks := self.leaks():
            yield f"{counted(len(leaks), 'image')} with the pixels of one in an earlier split: {listed(leaks, 3)}"
        if len(self.facts) + len(self.unreadable) < total:
            yield f"splits were searched for the same image among those opened: --images {total} opens all"


def opened(files: list[tuple[str, ImageFile]]) -> Found:
    """Read the images, given with their splits, each to its last pixel."""
    found = Found()
    for split, file in tqdm(files, unit="image", leave=False):
        try:
            image, facts = open_image(file.path, 3)
        except InputError as error:
            found.unreadable.append(str(error))
            continue
        found.facts.append(facts)
        pixels = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).hexdigest()
        found.places.setdefault(pixels, []).append((split, file.place))
    return found


def table(members: dict[str, Members], classes: tuple[str, ...]) -> Iterator[str]:
    """Lines of the number of images, by class and split."""
    wide = max(len(name) for name in (*classes, "class"))
    yield f"label  {'class':<{wide}}" + "".join(f"{split:>12}" for split in members)
    for label, name in enumerate(classes):
        counts = "".join(f"{len(part.get(name, ())):>12,}" for part in members.values())
        yield f"{label:>5}  {name:<{wide}}{counts}"


def contact_sheet(members: Members, classes: list[str], size: int) -> Image.Image:
    """A row of images per class, as a model sees them: grey where it cannot be read, white where there is none."""
    cells = []
    for name in classes:
        files = [members[name][i] for i in evenly_spread(len(members[name]), SHOWN_IMAGES)]
        cells += [seen_by_a_model(file.path, size) for file in files]
        cells += [torch.full((3, size, size), 255)] * (SHOWN_IMAGES - len(files))
    return image_grid(torch.stack(cells).float() / 127.5 - 1, columns=SHOWN_IMAGES, cell=size)


def seen_by_a_model(path: Path, size: int) -> Tensor:
    """An image as bytes (3,size,size); grey where it cannot be read."""
    try:
        return square(open_image(path, 3)[0], size)
    except InputError:
        return torch.full((3, size, size), 128)


def main(argv: list[str] | None = None) -> None:
    """Print what is there, then write the contact sheet."""
    config = cli.parse("farmer_ref.data", LookConfig(), DESCRIPTION, argv)
    require(config.dataset.startswith("folder:"), "dataset", config.dataset, "folder:PATH")
    out, folder = output_file(config.out, picture=True), ImageFolder(config.dataset)
    classes, members, problems = folder.class_names(), dict[str, Members](), list[str]()
    for split in SPLITS:
        try:
            members[split] = folder.split(split)
        except InputError as error:
            problems.append(str(error))
            continue
        unknown = [name for name in members[split] if name not in classes]
        problems += [f"the {split} split has a class {name}, which is none of {listed(classes)}" for name in unknown]
    files = [(split, file) for split, part in members.items() for inside in part.values() for file in inside]
    found = opened([files[i] for i in evenly_spread(len(files), config.images)])
    problems += found.unreadable
    held = f"{counted(len(files), 'image')} of {counted(len(classes), 'class')}"
    print(f"{printable(config.dataset)}: {held}, {folder.layout()}")
    skipped = f"skipped {described(folder.skipped) or 'nothing'}"
    for line in (*table(members, classes), *found.lines(len(files)), skipped):
        print(f"  {line}")
    for split in [split for split, part in members.items() if not part]:
        print(f"  no image falls to the {split} split: add images, or a folder {split}")
    if shown := next((part for part in members.values() if part), None):  # of the training split, if it has any
        rows = [name for name in classes if name in shown][:SHOWN_CLASSES]
        save_picture(contact_sheet(shown, rows, config.image_size), out)
        print(f"  rows of {out}, from the top: {listed(rows, SHOWN_CLASSES)}")
    for problem in problems[:MOST_PROBLEMS]:
        print(f"  problem: {problem}")
    if len(problems) > MOST_PROBLEMS:
        print(f"  and {len(problems) - MOST_PROBLEMS:,} more")
    if problems:
        wrong = counted(len(problems), "problem")
        raise InputError(f"dataset is {config.dataset!r}, with {wrong} (above); allowed: none")


if __name__ == "__main__":
    cli.run(main)
