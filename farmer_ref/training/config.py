"""Every setting of a run: frozen dataclasses, validated when they are made.

The command lines are derived from these classes, so a field's docstring is also its `--help`.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from farmer_ref.model.config import ModelConfig
from farmer_ref.model.guidance import Guidance
from farmer_ref.support.errors import require
from farmer_ref.support.settings import Count, Share, ThreadCount, Whole, settings_class


@settings_class
class RunConfig:
    """The settings that `train` and `distill` share: the run folder, the length of the run, and the optimiser."""

    out: str = "runs/digits"
    """The run folder."""
    resume: bool = False
    """Continue from the newest checkpoint of the run folder."""
    steps: PositiveInt = 1000
    """Optimiser steps of the whole run."""
    max_minutes: PositiveFloat | None = None
    """End the run after this many minutes if its steps take longer; learning rate and noise are scheduled to fit."""
    batch_size: Count = 64
    """Images per step, over all processes."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1e-3
    """Peak of the cosine schedule."""
    final_learning_rate: NonNegativeFloat = 1e-6
    """End of the cosine schedule."""
    warmup_steps: NonNegativeInt = 100
    """Steps of linear warm-up."""
    weight_decay: NonNegativeFloat = 0.03
    """AdamW's weight decay, for matrices and embeddings but not for biases and norms."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the moving average of the weights, reached gradually."""
    clip_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    max_skipped_steps: PositiveInt = 20
    """Stop the run after this many steps in a row with a non-finite gradient."""
    accumulate: Count = 1
    """Compute a step's batch in this many parts, one after another, if the whole does not fit into memory."""
    checkpoint_activations: bool = False
    """Keep only the inputs of transformer layers for the backward pass and recompute the rest: less memory, about a
    third more work."""
    compile: bool = False
    """Compile the transformer layers: slow to start, then faster on a GPU."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """tf32: float32, but a GPU rounds the inputs of matrix products to 10 bits. bfloat16: transformer layers under
    autocast, and a GPU's other products as with tf32. Densities and log-determinants stay in float32 in either."""
    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda, cuda:1, ..."""
    threads: ThreadCount | None = None
    """CPU threads; default: OMP_NUM_THREADS, or else the fastest number, by measuring the work itself."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that read images (for folder:PATH), per training process; 0: it reads them itself."""
    log_every: PositiveInt = 20
    """Steps between two lines of metrics.jsonl."""
    validate_every: NonNegativeInt = 500
    """Steps between two evaluations on at most 1,000 evenly spaced validation images (`train`: 4 dequantisations each);
    0: only at the end, printed and not logged."""
    sample_every: NonNegativeInt = 1000
    """Steps between two sample grids; 0 for none."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints."""
    seed: Whole = 0
    """Seed of all randomness."""

    def __post_init__(self) -> None:
        rate, parts = self.learning_rate, self.accumulate
        final, decay = self.final_learning_rate, self.weight_decay
        require(final <= rate, "final_learning_rate", final, f"0 to learning_rate ({rate})")
        require(rate * decay <= 1, "weight_decay", decay, f"0 to 1 / learning_rate ({1 / rate:g})")
        texts = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), str)}
        for name, text in texts.items():  # JSON and TensorBoard take no other
            plain = not any("\ud800" <= letter <= "\udfff" for letter in text)
            require(plain, name, text, "a name that UTF-8 can express")
        require(self.batch_size % parts == 0, "accumulate", parts, f"a divisor of batch_size ({self.batch_size})")


@settings_class
class TrainConfig(RunConfig):
    """One training run: its model, its data, and how its samples are drawn."""

    model: ModelConfig
    """The model."""
    preset: str = "digits"
    """The preset that provides the other defaults."""
    dataset: str = "digits"
    """digits, photographs, mnist, mnist-small, fashion-mnist, cifar10, cifar10-crops, or folder:PATH with one folder
    of images per class."""
    data_root: str = "data"
    """Where torchvision keeps its data sets."""
    download: bool = True
    """Download a missing data set."""
    flip: bool = False
    """Mirror images left to right at random."""
    label_dropout: Share = 0.1
    """Share of labels replaced by the null class, for guidance."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes (torchrun) share the model: each holds a copy, or a shard of every weight."""
    init_from: str = ""
    """The trained model to start from, instead of random weights: a run folder, a model that ships, or owner/name of
    the Hub. The model's settings are then its own."""
    guidance: Guidance = field(default_factory=Guidance)
    """How samples of this model are drawn, here and by default in `sample`."""
