"""What every training command shares: devices, precision, the schedule, EMA, run folders, checkpoints, the loop.

A run folder is what `Farmer.from_pretrained` reads: config.json and model.safetensors (the EMA weights). Beside them
`checkpoints/step-N/` holds the raw weights, the EMA and the optimiser as safetensors, and the loop's state as JSON. A
checkpoint is written under another name, flushed, and renamed as a whole: killing the process at any instant leaves
the last whole one. Nothing is ever pickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from farmer_ref.config import RunConfig, TrainConfig
from farmer_ref.data import Batch, random_seed
from farmer_ref.errors import InputError, require
from farmer_ref.farmer import Farmer
from farmer_ref.files import (
    flush,
    load_weights,
    pretrained_folder,
    read_config,
    read_weights,
    replace_file,
    write_weights,
)
from farmer_ref.guidance import Guidance
from farmer_ref.prior import NULL_LABEL
from farmer_ref.tokens import Dequantiser

KEEP_CHECKPOINTS = 2
STATE = "state.json"
STATE_FIELDS = ("step", "seconds", "skipped", "skipped_in_a_row")


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA when there is one; anything else is torch's own name of a device that works here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device is {name!r}, which does not work here ({reason}); allowed: auto, cpu, cuda") from None
    return device


def learning_rate_at(config: RunConfig, step: int, progress: float) -> float:
    """Linear warm-up over steps, then a cosine over the progress in [0, 1] of the run (§4.1)."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return warmup * (config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bfloat16 for the transformer layers, or nothing; the densities switch it off around themselves."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


class MovingAverage:
    """Exponential moving average of weights; its decay rises from 0.1 to `decay` as min(decay, (t+1) / (t+10))."""

    def __init__(self, source: nn.Module, target: nn.Module, decay: float):
        self.source, self.target, self.decay = source, target, decay
        self.target.load_state_dict(source.state_dict())
        self.target.requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step `step`."""
        weight = 1 - min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.target.parameters()), list(self.source.parameters()), weight)


def make_optimiser(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW(.9, .95); weight decay on matrices, none on biases and norms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def training_images(
    batch: Batch, dequantiser: Dequantiser, seed: int, progress: float, label_dropout: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Dequantised images (B,C,H,W) and labels (B,) with some dropped, a function of (seed, step, sample) only."""
    generator = torch.Generator(device)
    noise, dropped = [], []
    for k in range(len(batch.labels)):
        generator.manual_seed(random_seed(seed, batch.step, k))
        noise.append(dequantiser.draw(tuple(batch.values.shape[1:]), generator))
        dropped.append(random_seed(seed, "label", batch.step, k) < label_dropout * 2**63)
    labels = torch.where(torch.tensor(dropped), NULL_LABEL, batch.labels)
    values = batch.values.to(device, non_blocking=True)
    images = dequantiser(values, torch.stack(noise), dequantiser.noise_std_at(progress))
    return images, labels.to(device, non_blocking=True)


# -- run folders -------------------------------------------------------------------------------------------------------


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors, `number of the parameter.name`."""
    state = optimiser.state_dict()["state"]
    return {f"{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}


def load_optimiser_tensors(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`."""
    whole = optimiser.state_dict()
    for name, value in tensors.items():
        number, key = name.split(".")
        whole["state"].setdefault(int(number), {})[key] = value
    optimiser.load_state_dict(whole)


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def save_checkpoint(
    run: Path, model: nn.Module, ema: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write checkpoints/step-N as a whole; keep the newest two."""
    folder = run / "checkpoints"
    for leftover in folder.glob(".step-*"):  # of a kill
        shutil.rmtree(leftover)
    name = f"step-{state['step']}"
    temporary = folder / f".{name}.tmp"
    temporary.mkdir(parents=True)
    write_weights(temporary / "model.safetensors", model.state_dict())
    write_weights(temporary / "ema.safetensors", ema.state_dict())
    write_weights(temporary / "optimiser.safetensors", optimiser_tensors(optimiser))
    replace_file(temporary / STATE, lambda path: path.write_text(json.dumps(state) + "\n"))
    temporary.rename(folder / name)
    flush(folder)
    for old in checkpoints(run)[:-KEEP_CHECKPOINTS]:
        shutil.rmtree(old.rename(folder / f".{old.name}.old"))  # renamed first: what has a checkpoint's name is whole


def load_checkpoint(folder: Path, model: nn.Module, ema: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Read one checkpoint into the three; returns its state. A damaged one raises `InputError`, naming the file."""
    try:
        saved = json.loads((folder / STATE).read_text())
        state = {name: saved[name] for name in STATE_FIELDS}
        load_weights(model, folder / "model.safetensors")
        load_weights(ema, folder / "ema.safetensors")
        load_optimiser_tensors(optimiser, read_weights(folder / "optimiser.safetensors"))
    except InputError as error:
        raise InputError(f"{error}; delete {folder} to resume from the checkpoint before it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / STATE} cannot be read ({error}); allowed: the state of a checkpoint") from None
    return state


def load_run(name: str, weights: str = "ema") -> Farmer:
    """The model of a run folder or of a shipped name, in evaluation mode, with its EMA or its newest raw weights."""
    if weights not in ("ema", "raw"):
        raise InputError(f"weights is {weights!r}; allowed: ema, raw")
    model = Farmer.from_pretrained(name)
    if weights == "raw":
        found = checkpoints(pretrained_folder(name))
        if not found:
            raise InputError(f"weights is 'raw', and {name} holds no checkpoints; allowed: ema")
        load_weights(model, found[-1] / "model.safetensors")
    return model


def run_dataset(name: str) -> str:
    """The data set that a run folder or a shipped model was trained on."""
    dataset = read_config(pretrained_folder(name)).get("training", {}).get("dataset")
    if dataset is None:
        raise InputError(f"dataset is not given, and {name} records none; allowed: --dataset NAME")
    return dataset


def last_state(run: Path) -> dict[str, Any]:
    """Steps, seconds and skipped steps at the newest checkpoint of a run."""
    return json.loads((checkpoints(run)[-1] / STATE).read_text())


def saved_settings(folder: Path) -> TrainConfig:
    """The configuration that a run folder was made with."""
    saved = read_config(folder)
    if "training" not in saved:
        raise InputError(f"out is {str(folder)!r}, which holds a model and no run; allowed: a run folder or a new one")
    return TrainConfig.from_dict({**saved["training"], "model": saved["model"]})


def check_resumed(before: RunConfig, now: RunConfig, names: Iterable[str], what: str) -> None:
    """Raise `InputError` where a resumed run would differ from itself in one of the fields `names` (dots allowed)."""
    for name in names:
        old, new = attrgetter(name)(before), attrgetter(name)(now)
        require(old == new, name, new, f"{old!r}, as in the {what} that is resumed")


def run_guidance(name: str) -> Guidance:
    """The guidance that a run folder or a shipped model is to be sampled with, unless told otherwise."""
    folder = pretrained_folder(name)
    saved = read_config(folder)
    if "training" not in saved or not saved["model"].get("num_classes"):
        return Guidance()
    return saved_settings(folder).guidance


def keep_metrics_until(run: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl that lie after `step`, and a line that a kill cut off: they are done again."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    replace_file(path, lambda temporary: temporary.write_text("".join(kept)))


# -- the loop ----------------------------------------------------------------------------------------------------------

Loss = Callable[[Batch, float], tuple[Tensor, dict[str, float]]]
"""(batch, progress) to the loss, a scalar, and what to log beside it."""


class Trainer:
    """The optimisation loop: schedule, clipping, skipped steps, EMA, logs and checkpoints, exact resumption.

    The command that owns it gives the loss, the batches, and what else happens at intervals (validation, samples).
    """

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        model: nn.Module,
        ema: nn.Module,
        export: Callable[[], None],
        loss: Loss,
        batches: Callable[[int], Iterator[Batch]],
        events: list[tuple[int, Callable[[int], dict[str, float]]]],
    ):
        """`run` holds checkpoints and logs; `export()` writes the EMA where it is used, after each checkpoint;
        `batches(start)` iterates over the steps from `start`; `events` are a period in steps (0: never) and what is
        then done; what they return is logged."""
        self.config, self.model, self.loss, self.batches, self.events = config, model, loss, batches, events
        self.run, self.export = run, export
        self.average = MovingAverage(model, ema, config.ema_decay)
        self.optimiser = make_optimiser(model, config)
        self.step, self.seconds, self.skipped, self.skipped_in_a_row = 0, 0.0, 0, 0
        self._interrupted = False

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = checkpoints(self.run)
        if not found:
            return
        state = load_checkpoint(found[-1], self.model, self.average.target, self.optimiser)
        for name in STATE_FIELDS:
            setattr(self, name, state[name])
        keep_metrics_until(self.run, self.step)
        self.export()  # a kill may have come between

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1]: of its steps, or of its minutes, whichever is further."""
        by_time = self.seconds / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return min(1.0, max(self.step / self.config.steps, by_time))

    def save(self) -> None:
        """Write a checkpoint of this step, unless it is there."""
        if (self.run / "checkpoints" / f"step-{self.step}").exists():
            return
        state = {name: getattr(self, name) for name in STATE_FIELDS}
        save_checkpoint(self.run, self.model, self.average.target, self.optimiser, state)
        self.export()

    def train(self) -> bool:
        """Train to the end of the schedule. False if SIGINT or SIGTERM ended it early; the checkpoint is then saved."""
        from torch.utils.tensorboard import SummaryWriter

        if not checkpoints(self.run):
            self.save()
        if self.progress >= 1:
            return True
        writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=self.step + 1)
        began = time.perf_counter() - self.seconds
        handlers = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        bar = tqdm(total=self.config.steps, initial=self.step, desc=self.run.name, unit="step", dynamic_ncols=True)
        try:
            with open(self.run / "metrics.jsonl", "a", buffering=1) as metrics:
                for batch in self._until_interrupted(self.batches(self.step)):
                    logged = self._optimise(batch)
                    self.seconds = time.perf_counter() - began
                    if self.step % self.config.log_every == 0 or self.progress >= 1:
                        bar.set_postfix({name: f"{value:.4g}" for name, value in logged.items()}, refresh=False)
                        for name, value in logged.items():
                            writer.add_scalar(f"train/{name}", value, self.step)
                        metrics.write(self._metrics_line({"seconds": round(self.seconds, 3), **logged}))
                    bar.update()
                    for period, event in self.events:
                        if period and (self.step % period == 0 or self.progress >= 1):
                            for name, value in (measured := event(self.step)).items():
                                writer.add_scalar(name.replace("_", "/", 1), value, self.step)
                            if measured:
                                metrics.write(self._metrics_line(measured))
                    finished = self.progress >= 1
                    if finished or self._interrupted or self.step % self.config.checkpoint_every == 0:
                        self.save()
                    if finished or self._interrupted:
                        return finished
        finally:
            bar.close()
            writer.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self.save()  # only an interrupted run comes here: its batches ended
        return False

    def _metrics_line(self, values: dict[str, float]) -> str:
        """A line of metrics.jsonl for this step; JSON has no word for what is not finite, so that is null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        return json.dumps({"step": self.step, **finite}) + "\n"

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True

    def _until_interrupted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; they end where a signal to all processes of the run has ended the loader's workers."""
        try:
            yield from batches
        except (RuntimeError, OSError):
            if not self._interrupted:
                raise

    def _optimise(self, batch: Batch) -> dict[str, float]:
        """One step; a non-finite gradient changes nothing, is counted, and many in a row end the run."""
        progress = self.progress
        # Dropout draws from the global generator, for the batch as a whole; seeding it per step makes a resumed run the
        # same, bit for bit.
        torch.manual_seed(random_seed(self.config.seed, "step", self.step))
        rate = learning_rate_at(self.config, self.step, progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        loss, logged = self.loss(batch, progress)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm))
        if math.isfinite(norm):
            self.optimiser.step()
            self.average.update(self.step)
            self.skipped_in_a_row = 0
        else:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            if self.skipped_in_a_row >= self.config.max_skipped_steps:
                raise InputError(
                    f"learning_rate is {self.config.learning_rate}, and the gradient was not finite for "
                    f"{self.skipped_in_a_row} steps in a row (step {self.step}); allowed: a smaller learning_rate. "
                    "The newest checkpoint is whole"
                )
        self.step += 1
        return {**logged, "gradient_norm": norm, "learning_rate": rate, "skipped": self.skipped}


def run_record(config: TrainConfig) -> dict[str, Any]:
    """config.json of a run: the model's configuration and the training run's, from which both can be made again."""
    training = dataclasses.asdict(config)
    return {"model": training.pop("model"), "training": training}
