"""Every setting of a run: frozen dataclasses, validated when they are made.

The command lines are derived from these classes, so a field's docstring is also its `--help`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from farmer_ref.model.config import ModelConfig
from farmer_ref.model.guidance import Guidance
from farmer_ref.support.errors import require
from farmer_ref.support.settings import Share, Whole, settings_class


@settings_class
class RunConfig:
    """What `train` and `distill` share: where a run writes, for how long it optimises, and how."""

    out: str = "runs/digits"
    """The run folder."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""
    steps: PositiveInt = 1000
    """Optimiser steps of the whole run."""
    max_minutes: PositiveFloat | None = None
    """End the run after so many minutes, if its steps take longer; the schedules of learning rate and noise follow."""
    batch_size: PositiveInt = 64
    """Images per step, of all processes together."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1e-3
    """Peak of the cosine schedule."""
    final_learning_rate: NonNegativeFloat = 1e-6
    """End of the cosine schedule."""
    warmup_steps: NonNegativeInt = 100
    """Steps of linear warm-up."""
    weight_decay: NonNegativeFloat = 0.03
    """AdamW's weight decay: of matrices and embeddings, not of biases and norms."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the moving average of the weights, reached gradually."""
    clip_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    max_skipped_steps: PositiveInt = 20
    """So many steps in a row with a non-finite gradient stop the run."""
    accumulate: PositiveInt = 1
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
    workers: NonNegativeInt = 0
    """Processes that read images (for folder:PATH), for each process that trains."""
    log_every: PositiveInt = 20
    """Steps between two lines of metrics.jsonl."""
    validate_every: NonNegativeInt = 500
    """Steps between two evaluations on the validation split, of at most 1,000 images spread evenly over it (`train`: 4
    dequantisations each); 0 for none but the last."""
    sample_every: NonNegativeInt = 1000
    """Steps between two sample grids; 0 for none."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints."""
    seed: Whole = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        rate, parts = self.learning_rate, self.accumulate
        final, decay = self.final_learning_rate, self.weight_decay
        require(final <= rate, "final_learning_rate", final, f"0 to learning_rate ({rate})")
        require(rate * decay <= 1, "weight_decay", decay, f"0 to 1 / learning_rate ({1 / rate:g})")
        require(self.batch_size % parts == 0, "accumulate", parts, f"a divisor of batch_size ({self.batch_size})")


@settings_class
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
    label_dropout: Share = 0.1
    """Share of labels replaced by the null class, for guidance."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes (torchrun) share the model: each holds a copy, or a part of every weight."""
    guidance: Guidance = field(default_factory=Guidance)
    """How samples of this model are drawn, here and by `sample`, unless that is told otherwise."""
