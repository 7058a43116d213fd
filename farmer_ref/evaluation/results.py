"""Result files of `farmer_ref.ablate` and the figures of `farmer_ref.evaluate`, checked as they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, PositiveFloat, PositiveInt, model_validator

from farmer_ref.model.guidance import Guidance
from farmer_ref.support.files import read_json
from farmer_ref.support.settings import STRICT, Whole


class Figures(BaseModel):
    """What `ablate` takes from a file that `evaluate` has written; there is more in it."""

    bits_per_dim: float
    sample_accuracy: float
    frechet_distance: float
    student: bool = False
    guidance: Guidance = Guidance()


class OverSeeds(BaseModel):
    """A figure of each seed, with their mean and standard deviation."""

    model_config = STRICT

    mean: float
    standard_deviation: float | None
    seeds: list[float]


class ResultRow(BaseModel):
    """A measured row of a table."""

    model_config = STRICT

    name: str
    model: dict[str, Any]
    sampling: list[str]
    paper: str
    bits_per_dim: OverSeeds
    sample_accuracy: OverSeeds
    frechet_distance: OverSeeds
    steps: list[Whole]
    training_seconds: list[float]
    seconds_per_image: dict[str, float] = {}

    @model_validator(mode="after")
    def check_seeds(self) -> Self:
        """Every list has one entry per seed."""
        count = len(self.bits_per_dim.seeds)
        lists = [self.sample_accuracy.seeds, self.frechet_distance.seeds, self.steps, self.training_seconds]
        if not count or any(len(one) != count for one in lists):
            raise ValueError("lists over seeds are empty or of several lengths; allowed: one entry per seed in each")
        return self


class Origin(BaseModel):
    """How earlier rows of a result file were made."""

    model_config = STRICT

    command: str
    commit: str
    date: str
    device: str


class Result(Origin):
    """A result file: how it was made, the settings of its rows, the rows, and what they say."""

    uncommitted_changes: bool
    cpu_count: PositiveInt | None
    python: str
    torch: str
    title: str
    note: str
    data: str
    pixels: str
    seconds_per_run: PositiveFloat
    steps_per_run: PositiveInt | None
    samples: PositiveInt
    images: PositiveInt | None = None
    seeds: PositiveInt
    other_seeds: PositiveInt | None = None
    rows: list[ResultRow]
    kept: list[Origin] = []
    fifths: list[dict[str, OverSeeds]] = []
    claims: list[dict[str, Any]]
    sentences: list[str]


def read_result(path: Path) -> dict[str, Any]:
    """A result file, as it was written. Raises `InputError` where it is damaged."""
    return read_json(path, Result).model_dump(exclude_unset=True)


def is_result(path: Path) -> bool:
    """Whether a JSON file is a result of `ablate`: the benchmarks write beside them."""
    content = read_json(path, Any)
    return isinstance(content, dict) and "sentences" in content
