"""Train the one-step student of a trained flow (Alg. 2): `python -m farmer_ref.distill --run runs/digits`."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from farmer_ref.data.order import Batch, random_seed, training_batches, training_images
from farmer_ref.data.sets import ImageData, batches
from farmer_ref.model.config import StudentForm
from farmer_ref.model.pretrained import STUDENT
from farmer_ref.model.stepper import FixedMemory
from farmer_ref.model.student import Distillation, Loss, OneStepStudent, relative_errors, teacher_path
from farmer_ref.model.transformer import TrainingPass, transformer_layers
from farmer_ref.support import cli, parallel
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.files import PRETRAINED, pretrained_folder, read_json, replace_file, write_config
from farmer_ref.support.hub import is_repository, pinned
from farmer_ref.support.plots import class_labels, image_grid, save_picture
from farmer_ref.support.settings import Dropout, Factor, settings_class
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.config import RunConfig
from farmer_ref.training.costs import require_room
from farmer_ref.training.presets import DISTILLATIONS
from farmer_ref.training.runs import Run, check_resumed
from farmer_ref.training.trainer import MovingAverage, Trainer, autocast, images_at_a_time, set_up

DESCRIPTION = """Train a one-step student of a trained flow. --preset is read first: the defaults below are its values.

Presets: digits, for small models; farmer, for the paper's. With --resume, the defaults are the distillation's own."""
KEPT_BY_RESUME = ("preset", "form", "loss", "max_noise", "dropout", "seed", "batch_size")  # else the run is another one


@settings_class
class DistillConfig(RunConfig):
    """One distillation: whose student, and what it minimises."""

    run: str = "runs/digits"
    """The teacher: a run folder, a model that ships with the package, or owner/name of the Hugging Face Hub."""
    out: str = ""
    """The folder that gets student.safetensors and distillation/; empty: the teacher's own. Another folder gets a copy
    of the teacher, too."""
    preset: str = "digits"
    """The preset that the other defaults come from: digits, or farmer (60 epochs of ImageNet, the rest as the paper's
    models are trained)."""
    form: StudentForm = "forward"
    """What a block of the student computes: the form of the teacher's forward pass (Eq. 8, the paper's), or that of its
    inverse (Eq. 9, ours)."""
    loss: Loss = "hidden"
    """Squared error of every block's output (the paper), of the last one's, or of the last one's with small heads on
    the others (ours)."""
    max_noise: Factor = 0.3
    """The student's input is disturbed by s * noise, s uniform in [0, max_noise] for each image (the paper's .3)."""
    dropout: Dropout = 0.0
    """The student's dropout."""
    dataset: str = ""
    """The images; empty: those that the teacher was trained on, where the run says they are."""
    data_root: str = "data"
    """Where torchvision keeps its data sets."""
    download: bool = True
    """Download a missing data set."""
    steps: PositiveInt = 3000
    """Optimiser steps of the whole distillation."""


def settings(argv: list[str] | None = None) -> DistillConfig:
    """The configuration from the command line, over its preset's; resuming, over that of the distillation itself."""
    default = DistillConfig()
    known, _ = cli.first_pass(argv, preset=default.preset, run=None, out="", resume=False)
    if known.preset not in DISTILLATIONS:
        raise InputError(f"preset is {known.preset!r}; allowed: {', '.join(DISTILLATIONS)}")
    default = DistillConfig(preset=known.preset, **DISTILLATIONS[known.preset])
    run = known.run or default.run
    saved = Path(known.out or run) / "distillation" / "config.json"
    if not (known.resume and saved.is_file()):
        return cli.parse("farmer_ref.distill", default, DESCRIPTION, argv)
    before = distillation_settings(saved.parent)
    if known.out and known.run in (None, before.run.partition("@")[0]):  # a repository's commit is on record
        run = before.run
    default = dataclasses.replace(before, run=run, out=known.out)
    return dataclasses.replace(cli.parse("farmer_ref.distill", default, DESCRIPTION, argv), run=run)


def distillation_settings(folder: Path) -> DistillConfig:
    """The configuration that a folder `distillation` was made with."""
    path = folder / "config.json"
    if "form" not in read_json(path, dict[str, Any]):  # older than the choice
        raise InputError(f"{path} has no form; allowed: 'forward', or 'inverse' in the oldest distillations")
    return read_json(path, DistillConfig)


def prepare(config: DistillConfig, data: ImageData) -> Path:
    """The run folder with the teacher in it, checked: it gets student.safetensors and distillation/.

    `data` is what the student will be trained on.
    """
    require(len(data) > 0, "dataset", data.name, "a data set with training images")
    teacher = pretrained_folder(config.run)
    if not config.out and (teacher.parent == PRETRAINED or is_repository(config.run)):
        where = "ships with the package" if teacher.parent == PRETRAINED else "is on the Hugging Face Hub"
        raise InputError(f"out is empty, and {config.run} {where}; allowed: a folder, which gets a copy of it")
    run = Path(config.out or teacher)
    folder = run / "distillation"
    if checkpoints(folder):
        if not config.resume:
            raise InputError(
                f"out is {str(run)!r}, which holds a distillation already; allowed: another folder, or --resume"
            )
        before = distillation_settings(folder)
        check_resumed(before, config, names=KEPT_BY_RESUME, what="distillation")
        if config.dataset != before.dataset and not Run.open(teacher).read_these(data):  # a folder may have moved
            allowed = repr(before.dataset) if before.dataset else "the teacher's images"
            raise InputError(
                f"dataset is {config.dataset!r}; allowed: {allowed}, as in the distillation that is resumed"
            )
    elif (run / STUDENT).exists():
        raise InputError(f"out is {str(run)!r}, which holds a student already; allowed: another folder")
    elif config.resume:
        parallel.note_once(f"{folder} holds no checkpoint to resume: a new distillation begins")
    try:
        if run.resolve() != teacher.resolve():
            for name in ("config.json", "model.safetensors"):
                if (run / name).exists() and (run / name).read_bytes() != (teacher / name).read_bytes():
                    raise InputError(f"out is {str(run)!r}, which holds another model; allowed: a new folder")
            run.mkdir(parents=True, exist_ok=True)
            for name in ("config.json", "model.safetensors"):
                replace_file(run / name, lambda path, name=name: shutil.copy(teacher / name, path))
        (folder / "samples").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out is {str(run)!r}, which cannot be made ({error}); allowed: a folder to write") from None
    return run


def disturbed(z: Tensor, max_noise: float, seed: int, step: int, first: int = 0) -> Tensor:
    """z + s * noise with s ~ U[0, max_noise] for each image (Alg. 2): a function of (seed, step, sample) only."""
    generator = torch.Generator(z.device)
    rows = []
    for k, row in enumerate(z, first):
        generator.manual_seed(random_seed(seed, "disturb", step, k))
        size = max_noise * torch.rand(1, generator=generator, device=z.device, dtype=z.dtype)
        rows.append(row + size * torch.randn(row.shape, generator=generator, device=z.device, dtype=z.dtype))
    return torch.stack(rows)


def main(argv: list[str] | None = None) -> None:
    """Train a student, measuring its error block by block and drawing it beside its teacher at intervals."""
    config = settings(argv)
    config = dataclasses.replace(config, run=pinned(config.run))  # one commit of a repository throughout
    device = set_up(config)
    teacher = Run.open(config.run)
    images = images_at_a_time(config)
    require_room(teacher.model_config, device, images=images, backward=True)
    model = teacher.load().to(device).requires_grad_(False)
    flip = teacher.training is not None and teacher.training.flip
    with parallel.rank_zero_first():
        data, validation = (
            teacher.split(split, config.dataset, data_root=config.data_root, download=config.download)
            for split in ("train", "validation")
        )
    if model.config.flow != "autoregressive":
        raise InputError(
            f"run is {config.run!r}, whose flow is {model.config.flow!r} and quick to invert; allowed: 'autoregressive'"
        )
    run = parallel.on_rank_zero(lambda: prepare(config, data))

    torch.manual_seed(random_seed(config.seed, "heads"))

    def distillation_of(student: OneStepStudent) -> Distillation:
        width = model.config.flow_width
        return Distillation(student, config.loss, channels=model.config.token_channels, width=width)

    def new_distillation() -> Distillation:
        options = {**model.flow.options, "dropout": config.dropout}
        return distillation_of(OneStepStudent(model.flow.tokens, model.flow.channels, form=config.form, **options))

    student = OneStepStudent.from_teacher(model.flow, form=config.form, dropout=config.dropout)
    distillation = distillation_of(student).to(device)
    distributed_distillation = parallel.distribute(
        distillation, transformer_layers(distillation), how="ddp", precision=config.precision, device=device
    )
    average = MovingAverage(distillation, new_distillation, decay=config.ema_decay)

    def averaged_student() -> OneStepStudent:
        return average.module().student

    def levels_of(batch: Batch) -> tuple[list[Tensor], Tensor]:
        images, labels = training_images(
            batch, model.dequantiser, seed=config.seed, progress=1.0, label_dropout=0.0, device=device
        )
        return teacher_path(model.flow, model.to_tokens(images)[0], labels), labels

    def loss(batch: Batch, progress: float, training: TrainingPass) -> tuple[Tensor, dict[str, Tensor]]:
        with autocast(device, config.precision):  # the teacher, too: two thirds of the step if it were in float32
            levels, labels = levels_of(batch)
            z = disturbed(levels[-1], config.max_noise, config.seed, batch.step, batch.first)
            value = distributed_distillation(z, levels, labels, training)
        return value, {"loss": value.detach()}

    @functools.cache
    def validate(step: int) -> dict[str, float]:
        return {f"validation_error_block_{t}": error for t, error in enumerate(block_errors(), 1)}

    def block_errors() -> list[float]:
        """Relative error after the student's block for Z^0 (t = 1), ..., Z^{n-1} (t = n), on validation images."""
        if not len(validation):
            return []
        totals = torch.zeros(len(model.flow.blocks))
        count = 0
        for values, labels in batches(validation, images, 1000):
            levels, labels = levels_of(Batch(0, values, labels, first=count))  # the noise of an image by its number
            totals += len(values) * torch.tensor(relative_errors(averaged_student().path(levels[-1], labels), levels))
            count += len(values)
        return (totals / count).flip(0).tolist()

    def draw_samples(step: int) -> dict[str, float]:
        student = averaged_student()
        if parallel.rank() > 0:
            return {}
        columns = class_labels(model.config.num_classes, per_class=1).to(device)
        labels = columns.repeat(3)
        z = model.prior.sample(labels, generator=torch.Generator(device).manual_seed(config.seed))
        exact, approximate = (model.decode(z, labels, student=decoder).clamp(-1, 1) for decoder in (None, student))
        FixedMemory.forget()
        pairs = [half.unflatten(0, (3, len(columns))) for half in (exact, approximate)]
        rows = torch.stack(pairs, 1).flatten(0, 2)  # three pairs of rows: teacher above, student below
        grid = image_grid(model.dequantiser.without_noise(rows), columns=len(columns))
        save_picture(grid, folder / "samples" / f"step-{step:07d}.png")
        return {}

    def export() -> None:
        parallel.on_rank_zero(lambda: averaged_student().save(run / STUDENT))

    def steps_from(start: int) -> Iterator[Batch]:
        rows = parallel.rows_of_process(config.batch_size)
        return training_batches(
            data, config.batch_size, seed=config.seed, start=start, flip=flip, workers=config.workers, rows=rows
        )

    folder = run / "distillation"
    events = [(config.validate_every, validate), (config.sample_every, draw_samples)]
    trainer = Trainer(
        config,
        folder,
        model=distributed_distillation,
        average=average,
        export=export,
        loss=loss,
        batches=steps_from,
        events=events,
        tokens=model.config.tokens,
    )
    if config.resume:
        trainer.resume()
        if not distillation.student.taught_by(model.flow):
            raise InputError(
                f"run is {config.run!r}, whose weights have changed since; allowed: the teacher of the distillation "
                "that is resumed"
            )
    parallel.on_rank_zero(lambda: write_config(folder, dataclasses.asdict(config)))
    finished = trainer.train()
    errors = ", ".join(f"{error:.1%}" for error in validate(trainer.step).values())
    errors = errors or "none, without validation images"
    parallel.print_once(
        f"{'finished' if finished else 'interrupted'} at step {trainer.step} after {trainer.seconds / 60:.1f} minutes; "
        f"relative error on validation images from Z^0 to Z^{len(model.flow.blocks) - 1}: {errors}; "
        f"student in {run / STUDENT}, teacher beside student in {folder / 'samples'}"
    )
    trainer.leave()


if __name__ == "__main__":
    cli.run(main)
