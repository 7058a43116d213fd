"""Run folders: what a training run leaves, and what every other command opens.

A run folder is what `Farmer.from_pretrained` reads: config.json and model.safetensors (the EMA weights). Beside them
lie student.safetensors, `checkpoints/` (see `checkpoint`), metrics.jsonl, TensorBoard events, `samples/` and curve.png.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from farmer_ref.model.config import ModelConfig, SavedConfig, read_config
from farmer_ref.model.farmer import Farmer
from farmer_ref.model.guidance import Guidance
from farmer_ref.model.student import OneStepStudent
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.files import pretrained_folder, read_metrics, replace_file
from farmer_ref.support.settings import parse_json
from farmer_ref.training.checkpoint import checkpoints, load_checkpoint
from farmer_ref.training.config import RunConfig, TrainConfig


@dataclass(frozen=True)
class Run:
    """A trained model with the settings of its run: a run folder, a shipped model, or a repository of the Hub."""

    name: str
    folder: Path
    model_config: ModelConfig
    training: TrainConfig | None
    """None where the folder holds a model alone."""

    @classmethod
    def open(cls, name: str | Path) -> Run:
        """Read config.json, once. Raises `InputError` where there is no model or the file is damaged."""
        folder = pretrained_folder(name)
        saved = read_config(folder)
        return cls(str(name), folder, saved.model, _training(saved, folder))

    @property
    def guidance(self) -> Guidance:
        """How the model is to be sampled unless told otherwise; unguided where there are no labels to guide by."""
        return self.training.guidance if self.training and self.model_config.num_classes else Guidance()

    def dataset(self, otherwise: str = "") -> str:
        """The data set that the model was trained on; `otherwise` where none is recorded."""
        dataset = (self.training.dataset if self.training else "") or otherwise
        if not dataset:
            raise InputError(f"dataset is not given, and {self.name} records none; allowed: --dataset NAME")
        return dataset

    def load(self, weights: str = "ema") -> Farmer:
        """The model in evaluation mode, with its EMA weights or ("raw") those of its newest checkpoint."""
        require(weights in ("ema", "raw"), "weights", weights, "ema, raw")
        model = Farmer.from_pretrained(self.folder)
        if weights == "raw":
            found = checkpoints(self.folder)
            if not found:
                raise InputError(f"weights is 'raw', and {self.name} holds no checkpoints; allowed: ema")
            load_checkpoint(found[-1], {f"model.{name}": weight for name, weight in model.state_dict().items()})
        return model

    def load_student(self, model: Farmer) -> OneStepStudent:
        """The student of the model's flow, on the same device."""
        return OneStepStudent.from_pretrained(self.folder, model.flow)


def _training(saved: SavedConfig, folder: Path) -> TrainConfig | None:
    """The settings of a run in its config.json, which holds those of the model apart."""
    if saved.training is None:
        return None
    values = {**saved.training, "model": dataclasses.asdict(saved.model)}
    try:
        return parse_json(TrainConfig, json.dumps(values), known_as="training")
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from None


def saved_settings(folder: Path) -> TrainConfig:
    """The settings that a run folder was made with, to resume it."""
    training = Run.open(folder).training
    if training is None:
        raise InputError(f"out is {str(folder)!r}, which holds a model and no run; allowed: a run folder or a new one")
    return training


def run_record(config: TrainConfig) -> dict[str, Any]:
    """config.json of a run: the model's settings and the run's, from which both can be made again."""
    training = dataclasses.asdict(config)
    return {"model": training.pop("model"), "training": training}


def check_resumed(before: RunConfig, now: RunConfig, *, names: Iterable[str], what: str) -> None:
    """Raise `InputError` where a resumed run would differ from itself in one of the fields `names` (dots allowed)."""
    for name in names:
        old, new = attrgetter(name)(before), attrgetter(name)(now)
        require(old == new, name, new, f"{old!r}, as in the {what} that is resumed")


def keep_metrics_until(run: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, and a line that a kill cut off: those steps are done again."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line, record in zip(lines, read_metrics(run), strict=False) if record["step"] <= step]
    replace_file(path, lambda temporary: temporary.write_text("".join(kept)))
