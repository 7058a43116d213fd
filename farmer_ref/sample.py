"""Draw images: `python -m farmer_ref.sample --run runs/digits --guidance 1.5 --out grid.png`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import zipfile
from collections.abc import Iterator, Set
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import PositiveInt
from torch import Tensor
from tqdm import tqdm

from farmer_ref.evaluation.metrics import sample_generator
from farmer_ref.model.guidance import Guidance
from farmer_ref.model.pretrained import STUDENT
from farmer_ref.support import cli, parallel
from farmer_ref.support.errors import InputError, require, shown
from farmer_ref.support.files import (
    NOT_WRITTEN,
    output_file,
    pretrained_folder,
    read_json,
    replace_file,
    write_json,
)
from farmer_ref.support.plots import class_labels, image_grid, save_picture, to_bytes
from farmer_ref.support.settings import Count, Factor, ThreadCount, Whole, settings_class
from farmer_ref.training.costs import require_room
from farmer_ref.training.runs import Run
from farmer_ref.training.threads import choose_threads

DESCRIPTION = """Draw samples from a trained FARMER.

--out NAME.png is one picture, a column per class; NAME.npz holds `count` images in the format of the usual evaluators
(arr_0: uint8, count x H x W x 3; arr_1: labels); any other NAME is a folder of single PNG files, and the same command
again draws what is missing there. `--guidance 1.5` is short for `--guidance.scale 1.5`."""
SETTINGS_FILE = "samples.json"


@settings_class
class SampleConfig:
    """What to draw, how, and where to."""

    run: str = "digits"
    """A run folder, a model that ships with the package (digits, ...), or owner/name of the Hugging Face Hub,
    with @revision for any but its newest."""
    out: str = "samples.png"
    """A name that ends in .png or .npz, or a folder."""
    labels: tuple[int, ...] = ()
    """The classes, in turn; none given: the first ten for a picture, all otherwise. -1 asks for any class."""
    rows: Count = 10
    """Rows of a picture."""
    count: PositiveInt = 1000
    """Images in an .npz file or a folder."""
    guidance: Guidance = field(default_factory=Guidance)
    """Guidance; default: the run's own."""
    student: bool = False
    """Decode with the run's one-step student in place of the exact inverse."""
    method: Literal["sequential", "jacobi"] = "sequential"
    """The exact inverse of the flow: token by token, or in parallel sweeps to 1e-5."""
    redundant_temperature: Factor = 1.0
    """Multiplies the standard deviations of the redundant channels' mixture (Fig. 7)."""
    denoise: bool = False
    """Remove the noise from samples of a model trained with Gaussian noise (Tweedie's formula)."""
    batch_size: Count = 100
    """Images drawn at a time. Together with the seed it decides the images: another batch size gives others."""
    weights: Literal["ema", "raw"] = "ema"
    """ema, or raw (those of the newest checkpoint)."""
    seed: Whole = 0
    """The same seed gives the same images on the same device."""
    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda, ..."""
    threads: ThreadCount | None = None
    """CPU threads; default: OMP_NUM_THREADS, or else the fastest number, by measuring the work itself."""

    def __post_init__(self) -> None:
        if self.student and self.method != "sequential":
            raise InputError(f"method is {self.method!r}, with a student; allowed: either a student or a method")
        if self.student and self.weights == "raw":
            raise InputError("weights is 'raw', with a student; allowed: ema, the student's teacher")
        if Path(self.out).suffix.lower() in NOT_WRITTEN:
            raise InputError(f"out is {self.out!r}; allowed: a name that ends in .png or .npz, or a folder")


def settings(argv: list[str] | None = None) -> SampleConfig:
    """Settings from the command line; the default guidance is the run's own."""
    run, argv = cli.split_run_and_guidance(SampleConfig().run, argv)
    default = SampleConfig(run=run, guidance=Run.open(run).guidance)
    return cli.parse("farmer_ref.sample", default, DESCRIPTION, argv)


class NotDrawn(InputError):
    """Some process could not draw its images, so all processes end."""


class Sampler:
    """A model with everything that decides which images it draws."""

    def __init__(self, config: SampleConfig):
        self.config, self.device = config, parallel.join(config.device)
        self.run = Run.open(config.run)
        at_once = self.images_at_once()
        require_room(self.run.model_config, self.device, images=at_once)
        self.model = self.run.load(config.weights).to(self.device)
        self.student = self.run.load_student(self.model) if config.student else None
        self.threads = choose_threads(self.model, images=at_once, tokens=1, device=self.device, wanted=config.threads)

    def images_at_once(self) -> int:
        """The largest number of images of a batch: a picture may have fewer than the batch size."""
        if Path(self.config.out).suffix.lower() != ".png":
            return self.config.batch_size
        return min(self.config.batch_size, self.config.rows * len(self.columns()))

    def columns(self) -> Tensor:
        """The class of each column of a picture."""
        if self.config.labels:
            return torch.tensor(self.config.labels)
        return class_labels(self.run.model_config.num_classes, per_class=1)

    def draw(self, labels: Tensor, *, batch: int, progress: bool) -> Tensor:
        """One image (n,C,H,W) per label (n,), on the CPU: a function of the seed and the batch's number."""
        images = self.model.sample(
            labels.to(self.device),
            self.config.guidance,
            student=self.student,
            method=self.config.method,
            redundant_temperature=self.config.redundant_temperature,
            denoise=self.config.denoise,
            generator=sample_generator(self.device, self.config.seed, batch),
            progress=progress,
        )
        return self.model.dequantiser.without_noise(images).cpu()

    def batches(self, labels: Tensor, done: Set[int] = frozenset()) -> Iterator[tuple[range, Tensor]]:
        """This process's images with their numbers, batch by batch, skipping batches that are entirely `done`."""
        parts, quiet = labels.split(self.config.batch_size), parallel.rank() > 0
        with tqdm(total=len(labels), unit="image", disable=quiet or len(parts) == 1) as bar:
            for batch in range(parallel.rank(), len(parts), parallel.world_size()):
                first, count = batch * self.config.batch_size, len(parts[batch])
                if not done.issuperset(range(first, first + count)):
                    progress = not quiet and len(parts) == 1
                    began = time.perf_counter()
                    images = self.draw(parts[batch], batch=batch, progress=progress)
                    self.threads.check(time.perf_counter() - began)
                    yield range(first, first + count), images
                bar.update(min(count * parallel.world_size(), len(labels) - bar.n))

    def images(self, labels: Tensor) -> Tensor:
        """The images (n,C,H,W) of all processes, on every one of them."""
        return torch.cat(parallel.gather_interleaved([images for _, images in self.batches(labels)]))

    def rounds(self, labels: Tensor) -> Iterator[Tensor]:
        """The images of all processes as bytes (n,C,H,W), in order: one batch of each process at a time."""
        own = (to_bytes(images) for _, images in self.batches(labels))
        for _ in range(0, len(labels), self.config.batch_size * parallel.world_size()):
            try:
                mine = next(own, None)
            except InputError as error:  # the others wait for this process
                mine = NotDrawn(str(error))
            drawn = parallel.gather(mine)
            for problem in drawn:
                if isinstance(problem, NotDrawn):
                    raise problem
            yield torch.cat([images for images in drawn if images is not None])

    def labels(self) -> Tensor:
        """The classes in turn, for `count` images rounded up to full batches: image k is the same for any count."""
        classes = torch.tensor(self.config.labels or tuple(range(self.model.config.num_classes)) or (-1,))
        padded = -(-self.config.count // self.config.batch_size) * self.config.batch_size
        return classes.repeat(padded // len(classes) + 1)[:padded]


def write_picture(sampler: Sampler, out: Path) -> str:
    """Write a grid with one column per class."""
    config = sampler.config
    columns = sampler.columns()
    labels = columns.repeat(config.rows)
    grid = image_grid(sampler.images(labels), columns=len(columns))
    parallel.on_rank_zero(lambda: save_picture(grid, out))
    classes = ", ".join(map(sampler.run.class_name, columns.tolist()))
    which = f"columns {classes}" if sampler.model.config.num_classes else "without labels"
    return f"{len(labels)} samples of {config.run}, {which}: {out}"


def write_array(sampler: Sampler, out: Path) -> str:
    """Write an .npz file. arr_0: images (count,H,W,3), uint8; arr_1: labels (count,)."""
    count, labels = sampler.config.count, sampler.labels()
    rounds, problem = sampler.rounds(labels), None
    size = sampler.model.config.image_size

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
                np.lib.format.write_array_header_2_0(file, header)
                left = count
                for images in rounds:  # as they come: memory does not grow with the count
                    rgb = images[:left].permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
                    file.write(np.ascontiguousarray(rgb.numpy()))
                    left -= len(rgb)
            with archive.open("arr_1.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, labels[:count].numpy())

    try:
        if parallel.rank() == 0:
            replace_file(out, write)
    except InputError as error:
        if parallel.world_size() == 1 or isinstance(error, NotDrawn):
            raise
        problem = error
    for _ in rounds:  # the other processes draw for rank 0, which goes on even if it cannot write
        pass
    problem = parallel.gather(problem)[0]
    if problem is not None:
        raise problem
    return f"{count} samples of {sampler.config.run}: {out}"


def write_folder(sampler: Sampler, out: Path) -> str:
    """Write one PNG per image, named by its number and label; existing ones are not drawn again."""
    config = sampler.config
    labels = sampler.labels()
    parallel.on_rank_zero(lambda: note_settings(config, out, images_depend_on(config, sampler.device)))

    def path_of(number: int) -> Path:
        label = int(labels[number])
        return out / (f"{number:06d}_class{label}.png" if label >= 0 else f"{number:06d}.png")

    done = {number for number in range(len(labels)) if number >= config.count or path_of(number).exists()}
    done = parallel.gather(done)[0]  # before any process draws more
    drawn = 0
    for numbers, images in sampler.batches(labels, done):
        for number, image in zip(numbers, to_bytes(images), strict=True):
            if number not in done:
                picture = Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())
                save_picture(picture, path_of(number))
                drawn += 1
    drawn = sum(parallel.gather(drawn))
    return f"{config.count} samples of {config.run}, {drawn} of them drawn now: {out}"


def note_settings(config: SampleConfig, out: Path, deciding: dict[str, Any]) -> None:
    """Create the folder with the settings that decide image k; raise `InputError` if they differ from its own."""
    noted = out / SETTINGS_FILE
    if noted.exists() and any(out.glob("*.png")):  # without images, it is left over from a failed command
        before = read_json(noted, dict[str, Any])
        for name, value in deciding.items():
            old = before.get(name)
            where = f"with which the images in {out} were drawn, or another folder"
            require(old == value, name, value, f"{shown(old)}, {where}")
    elif not noted.exists() and out.exists() and any(out.iterdir()):
        raise InputError(f"out is {config.out!r}, a folder that holds other things; allowed: a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(noted, deciding)
    except OSError as error:
        raise InputError(f"out is {config.out!r}, which cannot be made ({error}); allowed: a folder to write") from None


def images_depend_on(config: SampleConfig, device: torch.device) -> dict[str, Any]:
    """Everything that decides image number k, as JSON values: the weights by their hash, not by their path."""
    values = json.loads(json.dumps({**dataclasses.asdict(config), "device": device.type}))
    for name in ("run", "out", "rows", "count", "threads"):
        del values[name]
    folder = pretrained_folder(config.run)
    for name in ("model.safetensors", *([STUDENT] if config.student else [])):
        with open(folder / name, "rb") as file:
            values[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return values


def main(argv: list[str] | None = None) -> None:
    """Draw the samples and write them."""
    config = settings(argv)
    write = {".png": write_picture, ".npz": write_array}.get(Path(config.out).suffix.lower())
    out = output_file(config.out) if write else Path(config.out)
    if out.is_file() and not write:
        raise InputError(f"out is {config.out!r}, which is a file; allowed: a folder, or a name in .png or .npz")
    parallel.print_once((write or write_folder)(Sampler(config), out))


if __name__ == "__main__":
    cli.run(main)
