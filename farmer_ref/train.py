"""Train a FARMER: `python -m farmer_ref.train --preset digits --out runs/digits`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import torch

from farmer_ref.data.folders import FolderSet, SplitRecord, listed
from farmer_ref.data.order import Batch, random_seed, training_batches, training_images
from farmer_ref.data.sets import ImageData, load_split
from farmer_ref.evaluation.metrics import evaluate_likelihood
from farmer_ref.model.config import ModelConfig
from farmer_ref.model.farmer import Farmer, LikelihoodTerms, negative_log_likelihood
from farmer_ref.model.pretrained import STUDENT, least_parameters
from farmer_ref.model.stepper import FixedMemory
from farmer_ref.model.tokens import nats_to_bits_per_dim
from farmer_ref.model.transformer import TrainingPass, transformer_layers
from farmer_ref.support import cli, parallel
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.files import replace_file, write_config, write_weights
from farmer_ref.support.hub import pinned
from farmer_ref.support.plots import class_labels, image_grid, save_picture, training_curve
from farmer_ref.training.checkpoint import checkpoints
from farmer_ref.training.config import TrainConfig
from farmer_ref.training.costs import require_room, state_bytes, training_flops
from farmer_ref.training.presets import PRESETS
from farmer_ref.training.runs import Run, check_resumed, run_record, saved_settings
from farmer_ref.training.trainer import MovingAverage, Trainer, autocast, images_at_a_time, set_up

DESCRIPTION = """Train FARMER on images. --preset is read first: the defaults below are its values.

Presets: {presets}. With --resume, the defaults are those of the run itself."""
FITTED_PATCHES = 200_000  # a PCA, or a histogram, needs no more
KEPT_BY_RESUME = ["preset", "init_from", "seed", "batch_size", "flip", "label_dropout"]  # else the run is another one
# What may differ from the model that a run starts from: settings that leave its weights their meaning.
FREE_AT_START = ("class_names", "dropout", "dequantisation", "noise_start", "noise_final", "noise_width")


def settings(argv: list[str] | None = None) -> TrainConfig:
    """The run's configuration from the command line, over its preset's (or, resuming, over its own)."""
    known, _ = cli.first_pass(argv, preset="digits", resume=False, out=None, init_from="")
    if known.preset not in PRESETS:
        raise InputError(f"preset is {known.preset!r}; allowed: {', '.join(PRESETS)}")
    default = PRESETS[known.preset]
    folder = Path(known.out or default.out)
    if resumed := known.resume and (folder / "config.json").is_file():
        default = dataclasses.replace(saved_settings(folder), out=str(folder))  # the folder may have moved
    elif known.init_from:
        begun = pinned(known.init_from)
        default = dataclasses.replace(default, model=Run.open(begun).model_config, init_from=begun)
    description = DESCRIPTION.format(presets=", ".join(PRESETS))
    config = cli.parse("farmer_ref.train", default, description, argv)
    # The commit of a repository is recorded, and still is where the command is given again to resume the run.
    same = config.init_from == default.init_from.partition("@")[0] if resumed else bool(known.init_from)
    return dataclasses.replace(config, init_from=default.init_from) if same else config


def prepare_run(config: TrainConfig, data: ImageData, validation: ImageData) -> Path:
    """Make the run folder, or check that an existing one may go on, with these images."""
    require(bool(config.out), "out", config.out, "a folder")
    require(len(data) > 0, "dataset", config.dataset, "a data set with training images")
    run = Path(config.out)
    if run.exists() and not run.is_dir():
        raise InputError(f"out is {config.out!r}, which is a file; allowed: a folder")
    if checkpoints(run):
        if not config.resume:
            raise InputError(f"out is {config.out!r}, which holds a run already; allowed: a new folder, or --resume")
        names = [f"model.{field.name}" for field in dataclasses.fields(config.model)] + KEPT_BY_RESUME
        before = saved_settings(run)
        check_resumed(before, config, names=names, what="run")
        resumed = Run.open(run)
        if not resumed.read_these(data):
            held = "the images that were there" if config.dataset == before.dataset else repr(before.dataset)
            changed = described_change(resumed.data, data.splits)
            raise InputError(f"dataset is {config.dataset!r}{changed}; allowed: {held}, as in the run that is resumed")
        resumed.compare(validation, "validation")
    elif holds_trained_weights(run):
        raise InputError(
            f"out is {config.out!r}, which holds trained weights without checkpoints; allowed: a new folder"
        )
    elif (run / "config.json").exists() and not (run / "model.safetensors").exists():  # ours is the later of the two
        raise InputError(f"out is {config.out!r}, which holds a config.json of something else; allowed: a new folder")
    elif config.resume:
        parallel.note_once(f"{run} holds no checkpoint to resume: a new run begins, of the preset {config.preset}")
    try:
        (run / "samples").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out is {config.out!r}, which cannot be made ({error}); allowed: a folder to write") from None
    return run


def described_change(before: dict[str, SplitRecord] | None, now: dict[str, SplitRecord] | None) -> str:
    """How the splits that training reads have changed, for a message; empty where one of the two is not known."""
    changed = [
        f"{before[part].images:,} {part} images then, {now[part].images:,} now"
        for part in ("train", "validation")
        if before and now and part in before and part in now and before[part] != now[part]
    ]
    return f" ({', '.join(changed)}, and other names or sizes)" if changed else ""


def with_class_names(config: TrainConfig, data: ImageData) -> TrainConfig:
    """The settings of a new run with the names of its classes, all of which must have training images."""
    wanted = config.model.num_classes
    if not wanted:
        return config
    require(
        wanted == data.num_classes,
        "model.num_classes",
        wanted,
        f"{data.num_classes}, the classes of {data.name} ({listed(data.class_names)}), or 0 to train without labels",
    )
    lacking = listed([data.class_names[label] for label in range(wanted) if label not in data.present()])
    if lacking and isinstance(data, FolderSet):
        raise InputError(
            f"dataset is {data.name!r}, without training images of {lacking}; allowed: images of each class"
        )
    if lacking:
        parallel.note_once(f"{data.name} has no images of {lacking}: samples of that class will mean nothing")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, class_names=data.class_names))


def holds_trained_weights(run: Path) -> bool:
    """Whether a folder without checkpoints has weights that a new run would overwrite.

    A run killed in its first moments has untrained weights, and no metrics yet. A copied teacher has a student.
    """
    if (run / STUDENT).exists() or (run / "distillation").exists():
        return True
    if not (run / "model.safetensors").exists() or not (run / "config.json").exists():
        return False
    metrics = run / "metrics.jsonl"
    return Run.open(run).training is None or (metrics.exists() and metrics.stat().st_size > 0)


def likelihood_figures(terms: LikelihoodTerms, config: ModelConfig) -> dict[str, torch.Tensor | float]:
    """The values logged beside the loss: nats per dimension, the log-determinant's part of it, and bits/dim."""
    log_prob, logdet = terms.total.detach().mean(), terms.logdet.detach().mean()
    figures = {"nats_per_dim": -log_prob.double() / config.dimensions}
    if config.dequantisation == "uniform":
        figures["bits_per_dim"] = nats_to_bits_per_dim(log_prob, config.dimensions, config.levels)
    figures["logdet_nats_per_dim"] = -logdet.double() / config.dimensions
    return figures


class Training:
    """One training run: the model and its average, and what `Trainer` asks for at each step and interval."""

    def __init__(self, config: TrainConfig, device: torch.device, *, run: Path, data: ImageData, validation: ImageData):
        self.config, self.device, self.run, self.data, self.validation = config, device, run, data, validation
        torch.manual_seed(random_seed(config.seed, "weights"))
        self.model = Farmer(config.model).to(device)
        self.resuming = config.resume and bool(checkpoints(run))
        if not self.resuming and config.init_from:
            self.start_from(config.init_from)
        elif not self.resuming and (config.model.patch_basis == "pca" or config.model.pixels == "histogram"):
            self.fit_to_data()
        self.distributed_model = parallel.distribute(
            self.model,
            transformer_layers(self.model),
            how=config.parallel,
            precision=config.precision,
            device=device,
        )
        self.average = MovingAverage(self.model, lambda: Farmer(config.model), decay=config.ema_decay)

    def start_from(self, name: str) -> None:
        """Take the averaged weights of a trained model, and with them its PCA basis and its pixels' histograms."""
        trained = Run.open(name).load()
        for field in dataclasses.fields(ModelConfig):
            before, now = getattr(trained.config, field.name), getattr(self.config.model, field.name)
            if field.name not in FREE_AT_START:
                require(before == now, f"model.{field.name}", now, f"{before!r}, as in {name}, where the run begins")
        weights, noise = trained.state_dict(), self.model.noise.state_dict(prefix="noise.")
        if trained.config.noise_width != self.config.model.noise_width:  # begun anew, which has no effect yet
            weights = {name: weight for name, weight in weights.items() if not name.startswith("noise.")} | noise
        self.model.load_state_dict(weights)

    def fit_to_data(self) -> None:
        """Count the histograms of the pixels and fit the PCA basis on training images, the same for all processes."""
        model = self.model
        if parallel.rank() == 0:
            step = max(1, len(self.data) * self.config.model.tokens // FITTED_PATCHES)
            values = torch.stack([self.data[i][0] for i in range(0, len(self.data), step)])
            images = (2 * values.double() + 1) / self.config.model.levels - 1
            pixels = model.pixels.cpu()
            pixels.fit(values)
            images, _ = pixels(images)
            pixels.to(self.device)
            model.patchify.fit(images)
        parallel.broadcast_from_rank_zero([*model.patchify.buffers(), *model.pixels.buffers()])

    def batches(self, start: int) -> Iterator[Batch]:
        """This process's rows of the batches from step `start` on."""
        config = self.config
        rows = parallel.rows_of_process(config.batch_size)
        return training_batches(
            self.data,
            config.batch_size,
            seed=config.seed,
            start=start,
            flip=config.flip,
            workers=config.workers,
            rows=rows,
        )

    def loss(
        self, batch: Batch, progress: float, training: TrainingPass
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor | float]]:
        """The negative log-likelihood of dequantised images per dimension (Eq. 13), and the values to log."""
        config = self.config
        images, labels = training_images(
            batch,
            self.model.dequantiser,
            seed=config.seed,
            progress=progress,
            label_dropout=config.label_dropout,
            device=self.device,
        )
        with autocast(self.device, config.precision):
            terms = self.distributed_model(images, labels if config.model.num_classes else None, training)
        figures = likelihood_figures(terms, config.model) | self.noise_figures(progress)
        return negative_log_likelihood(terms, config.model.dimensions), figures

    def noise_figures(self, progress: float, prefix: str = "") -> dict[str, float]:
        """The size of the Gaussian noise, on which nats per dimension depend."""
        if self.config.model.dequantisation != "gaussian":
            return {}
        return {f"{prefix}noise_std": self.model.dequantiser.noise_std_at(progress)}

    def validate(self, progress: float) -> dict[str, float]:
        """The likelihood of validation images, if any, with the noise that training images have at this progress."""
        if not len(self.validation):
            return {}
        measured = evaluate_likelihood(
            self.average.module(),
            self.validation,
            draws=4,
            batch_size=images_at_a_time(self.config),
            limit=1000,
            noise_std=self.model.dequantiser.noise_std_at(progress),
        )
        unit, value = "nats_per_dim", measured.nats_per_dim
        if measured.bits_per_dim is not None:
            unit, value = "bits_per_dim", measured.bits_per_dim
        return {f"validation_{unit}": value, **self.noise_figures(progress, "validation_")}

    def draw_samples(self, step: int) -> dict[str, float]:
        """Draw a grid of samples with the averaged weights into samples/; nothing to log."""
        averaged = self.average.module()
        if parallel.rank() > 0:
            return {}
        labels = class_labels(min(self.config.model.num_classes, self.data.num_classes), per_class=4).to(self.device)
        guidance = self.config.guidance if self.config.model.num_classes else None
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        try:
            images = averaged.sample(labels, guidance, generator=generator)
        except InputError as error:  # a model that is out of hand for some steps may come back
            parallel.note_once(f"no samples at step {step:,}: {error}")
            return {}
        finally:
            FixedMemory.forget()
        grid = image_grid(self.model.dequantiser.without_noise(images), columns=len(labels) // 4)
        save_picture(grid, self.run / "samples" / f"step-{step:07d}.png")
        return {}

    def export(self) -> None:
        """Write the averaged weights as the run's model."""
        weights = self.average.state_on_rank_zero()
        parallel.on_rank_zero(lambda: write_weights(self.run / "model.safetensors", weights))


def main(argv: list[str] | None = None) -> None:
    """Train, validating and drawing samples at intervals."""
    config = settings(argv)
    device = set_up(config)
    processes = parallel.world_size()
    require_room(
        config.model,
        device,
        images=images_at_a_time(config),
        state=state_bytes(least_parameters(config.model), processes if config.parallel == "fsdp" else 1),
        backward=True,
    )
    with parallel.rank_zero_first():
        data, validation = (
            load_split(config.dataset, split, config.model, data_root=config.data_root, download=config.download)
            for split in ("train", "validation")
        )
        if not (config.resume and checkpoints(Path(config.out))):
            config = with_class_names(config, data)
        run = prepare_run(config, data, validation)
    training = Training(config, device, run=run, data=data, validation=validation)

    @functools.cache
    def validate(step: int) -> dict[str, float]:
        return training.validate(trainer.progress)

    trainer = Trainer(
        config,
        run,
        model=training.distributed_model,
        average=training.average,
        export=training.export,
        loss=training.loss,
        batches=training.batches,
        events=[(config.validate_every, validate), (config.sample_every, training.draw_samples)],
        tokens=config.model.tokens,
        flops_per_image=training_flops(config.model),
    )
    if config.resume:
        trainer.resume()
    if not training.resuming:  # first the weights, then config.json: from then on the folder can be read and resumed
        training.export()
    held = Run.open(run).data if training.resuming else data.splits
    parallel.on_rank_zero(lambda: write_config(run, run_record(config, held)))
    finished = trainer.train()
    if parallel.rank() == 0 and (run / "metrics.jsonl").exists():
        curve = training_curve(run)
        replace_file(run / "curve.png", lambda path: curve.savefig(path, format="png"))
    how = "finished" if finished else "interrupted"
    likelihood = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in validate(trainer.step).items())
    likelihood = likelihood or "no validation images"
    parallel.print_once(
        f"{how} at step {trainer.step} after {trainer.seconds / 60:.1f} minutes of training, {trainer.skipped} steps "
        f"skipped; {likelihood}; weights, samples and curve in {run}"
    )
    trainer.leave()


if __name__ == "__main__":
    cli.run(main)
