"""Every setting of a run: frozen dataclasses, validated when they are made.

The command lines are derived from these classes, so a field's docstring is also its `--help`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from farmer_ref.model.config import ModelConfig
from farmer_ref.model.guidance import Guidance
from farmer_ref.support.errors import InputError, require


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What `train` and `distill` share: where a run writes, for how long it optimises, and how."""

    out: str = "runs/digits"
    """The run folder."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""
    steps: int = 1000
    """Optimiser steps of the whole run."""
    max_minutes: float | None = None
    """End the run after so many minutes, if its steps take longer; the schedules of learning rate and noise follow."""
    batch_size: int = 64
    """Images per step, of all processes together."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule."""
    final_learning_rate: float = 1e-6
    """End of the cosine schedule."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.03
    """AdamW's weight decay: of matrices and embeddings, not of biases and norms."""
    ema_decay: float = 0.995
    """Decay of the moving average of the weights, reached gradually."""
    clip_norm: float = 1.0
    """Gradients are clipped to this norm."""
    max_skipped_steps: int = 20
    """So many steps in a row with a non-finite gradient stop the run."""
    accumulate: int = 1
    """Parts of a step's batch that are computed one after another, where the whole does not fit into memory."""
    checkpoint_activations: bool = False
    """Keep only the inputs of transformer layers for the backward pass and compute the rest again: less memory, about
    a third more work."""
    compile: bool = False
    """Compile the transformer layers and the shared mixture's density: slow to start, then faster on a GPU."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """bfloat16: transformer layers under autocast; densities stay in float32. tf32: float32, but products of matrices
    on a GPU are rounded to 10 bits."""
    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda, cuda:1, ..."""
    workers: int = 0
    """Processes that read images (for folder:PATH), for each process that trains."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl."""
    validate_every: int = 500
    """Steps between two evaluations on the validation split, of at most 1,000 images spread evenly over it (`train`: 4
    dequantisations each); 0 for none but the last."""
    sample_every: int = 1000
    """Steps between two sample grids; 0 for none."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "max_skipped_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("warmup_steps", "validate_every", "sample_every", "weight_decay", "workers", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "clip_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        require(
            0 <= self.final_learning_rate <= self.learning_rate,
            "final_learning_rate",
            self.final_learning_rate,
            f"0 to learning_rate ({self.learning_rate})",
        )
        require(self.max_minutes is None or self.max_minutes > 0, "max_minutes", self.max_minutes, "above 0")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 up to (not including) 1")
        precisions = ("float32", "tf32", "bfloat16")
        require(self.precision in precisions, "precision", self.precision, ", ".join(precisions))
        require(
            self.accumulate >= 1 and self.batch_size % self.accumulate == 0,
            "accumulate",
            self.accumulate,
            f"a divisor of batch_size ({self.batch_size})",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """One training run: what it learns from, for how long, and where it writes."""

    model: ModelConfig
    """The model."""
    preset: str = "digits"
    """The preset that the other defaults come from."""
    dataset: str = "digits"
    """digits, photographs, mnist, fashion-mnist, cifar10, cifar10-crops, or folder:PATH with one folder of images per
    class."""
    data_root: str = "data"
    """Where torchvision keeps its data sets."""
    download: bool = True
    """Download a missing data set."""
    flip: bool = False
    """Mirror images left to right at random."""
    label_dropout: float = 0.1
    """Share of labels replaced by the null class, for guidance."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes (torchrun) share the model: each holds a copy, or a part of every weight."""
    guidance: Guidance = field(default_factory=Guidance)
    """How samples of this model are drawn, here and by `sample`, unless that is told otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.label_dropout <= 1, "label_dropout", self.label_dropout, "0 to 1")
        require(self.parallel in ("ddp", "fsdp"), "parallel", self.parallel, "ddp, fsdp")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The configuration that `dataclasses.asdict` wrote; an unknown field raises `InputError`."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            require(name in names, "training configuration field", name, ", ".join(names))
        try:
            parts = {
                "model": ModelConfig.from_dict(values["model"]),
                "guidance": Guidance(**values.get("guidance", {})),
            }
            return cls(**{**values, **parts})
        except TypeError as error:
            raise InputError(f"training configuration is damaged ({error}); allowed: a run's own") from None
