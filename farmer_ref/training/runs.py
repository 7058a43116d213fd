"""Run folders: what a training run leaves, and what every other command opens.

A run folder is what `Farmer.from_pretrained` reads: config.json and model.safetensors (the EMA weights). Beside them
lie student.safetensors, `checkpoints/` (see `checkpoint`), metrics.jsonl, TensorBoard events, `samples/` and curve.png.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from farmer_ref.data.folders import SplitRecord, folder_of, listed
from farmer_ref.data.images import printable
from farmer_ref.data.sets import CLASS_NAMES, ImageData, load_split
from farmer_ref.model.config import ModelConfig, SavedConfig, read_config
from farmer_ref.model.farmer import Farmer
from farmer_ref.model.guidance import Guidance
from farmer_ref.model.student import OneStepStudent
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.files import pretrained_folder, read_metrics, replace_file
from farmer_ref.support.parallel import note_once
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
    data: dict[str, SplitRecord] | None = None
    """What the splits held when the run began, by name; None where the data set is no folder, or was not recorded."""

    @classmethod
    def open(cls, name: str | Path) -> Run:
        """Read config.json, once. Raises `InputError` where there is no model or the file is damaged."""
        folder = pretrained_folder(name)
        saved = read_config(folder)
        return cls(str(name), folder, saved.model, _training(saved, folder), _data(saved, folder))

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

    def class_names(self) -> tuple[str, ...]:
        """The names of the model's classes: those it stores, or those of the named data set it was trained on."""
        known = CLASS_NAMES.get(self.training.dataset, ()) if self.training else ()
        return self.model_config.class_names or (known if len(known) == self.model_config.num_classes else ())

    def class_name(self, label: int) -> str:
        """A class in words: its label, and its name where one is known that says more."""
        name = dict(enumerate(self.class_names())).get(label, "")
        return f"{label} ({printable(name)})" if name not in ("", str(label)) else str(label)

    def split(self, part: str, dataset: str = "", *, data_root: str, download: bool) -> ImageData:
        """One split ("train", "validation", "test") of the run's data set, or of another, for this model.

        Classes are matched by their names. Where that cannot be, or where the images are others than those that the
        run read, a note says so.
        """
        name = dataset or self.dataset()
        config = dataclasses.replace(self.model_config, class_names=self.class_names())
        data = load_split(name, part, config, data_root=data_root, download=download)
        wanted = config.num_classes
        if data.splits is not None and wanted and not config.class_names and data.num_classes != wanted:
            own = self.training is not None and _spelled_alike(name, self.training.dataset)
            require(own, f"number of classes of {printable(name)}", data.num_classes, f"{wanted}: no names to match by")
        self.compare(data, part)
        return data

    def read_these(self, data: ImageData) -> bool:
        """Whether a data set is the one that the run was trained on: by what it holds, not by how it is spelled."""
        if self.training is None or self.data is None or data.splits is None:
            return self.training is not None and _spelled_alike(data.name, self.training.dataset)
        return all(data.splits.get(part) == self.data.get(part) for part in ("train", "validation"))

    def compare(self, data: ImageData, part: str) -> None:
        """Say where the classes or the images of a split of a folder are not those of the run."""
        if data.splits is None:
            return
        names, name = data.class_names, printable(data.name)
        if self.model_config.num_classes and not self.class_names():
            by_place = listed([f"{label} {own}" for label, own in enumerate(names)])
            note_once(f"{self.name} stores no class names: those of {name} are matched by order ({by_place})")
        elif self.model_config.num_classes and len(data) and (lacking := set(range(len(names))) - set(data.present())):
            missing = listed([names[label] for label in sorted(lacking)])
            note_once(f"{name} has no image of {missing} in its {part} split")
        before = (self.data or {}).get(part)
        own = self.training is not None and self.training.dataset.startswith("folder:")
        if self.data is None and own and part != "train":
            note_once(
                f"{self.name} does not record what it held out: it may have trained on {part} images of {data.name}"
            )
        elif before is not None and before != (now := data.splits[part]):
            how = f"{before.images:,} images then, {now.images:,} now, and other names or sizes"
            note_once(f"the {part} split of {name} is not the one that {self.name} read ({how})")

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


def _data(saved: SavedConfig, folder: Path) -> dict[str, SplitRecord] | None:
    """What config.json says of the folder of images that a run read."""
    if saved.data is None:
        return None
    try:
        return parse_json(dict[str, SplitRecord], json.dumps(saved.data), known_as="data")
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from None


def _spelled_alike(first: str, second: str) -> bool:
    """Whether two names of data sets are equal, or paths of one folder."""
    if not (first.startswith("folder:") and second.startswith("folder:")):
        return first == second
    return os.path.realpath(folder_of(first)) == os.path.realpath(folder_of(second))


def saved_settings(folder: Path) -> TrainConfig:
    """The settings that a run folder was made with, to resume it."""
    training = Run.open(folder).training
    if training is None:
        raise InputError(f"out is {str(folder)!r}, which holds a model and no run; allowed: a run folder or a new one")
    return training


def run_record(config: TrainConfig, data: dict[str, SplitRecord] | None = None) -> dict[str, Any]:
    """config.json of a run: the model's settings and the run's, and what its folder of images held, if it had one."""
    training = dataclasses.asdict(config)
    record = {"model": training.pop("model"), "training": training}
    return record | ({"data": {part: dataclasses.asdict(held) for part, held in data.items()}} if data else {})


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
