"""Every number that describes a model or a run: frozen dataclasses, checked when they are made, and the presets.

The command lines are derived from these classes, so a field's docstring is also its `--help`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from farmer_ref.errors import InputError, require
from farmer_ref.guidance import Guidance

# e^88.7 is float32's largest number. The log-scales of one channel in the affine maps of all blocks add up to less;
# what learned channel mixing adds is not bounded.
OVERFLOW_BOUND = 80.0


@dataclass(frozen=True)
class ModelConfig:
    """What a `Farmer` is made of (Table 1 of the paper). Saved with the weights as JSON."""

    image_size: int = 8
    """Height and width of the (square) images."""
    channels: int = 1
    """Colour channels."""
    levels: int = 256
    """Grey levels per colour channel (256 for 8-bit images, 17 for scikit-learn's digits)."""
    patch_size: int = 2
    """Side p of a patch; a token has D = channels * p * p channels."""
    num_classes: int = 10
    """Number of labels; 0 for a model without labels."""
    flow: Literal["autoregressive", "coupling"] = "autoregressive"
    """The kind of flow: the paper's, or affine coupling (the baseline of its Table 4)."""
    flow_blocks: int = 4
    """Blocks n of the flow."""
    flow_layers: int = 2
    """Transformer layers in each flow block."""
    flow_width: int = 64
    """Width of the flow's transformers."""
    flow_sees_class: bool = False
    """Give the label to the flow, too (TARFlow does, FARMER does not)."""
    prior_layers: int = 4
    """Transformer layers of the autoregressive prior."""
    prior_width: int = 64
    """Width of the prior's transformer."""
    head_dim: int = 64
    """Width of an attention head."""
    informative: int | None = None
    """Informative channels I of a token; None means no split (I = D)."""
    informative_channels: Literal["first", "interleaved"] = "first"
    """Which channels are informative: the first I, or I spread evenly over the token."""
    components: int = 64
    """Components K_I of the mixture of a token (1: a single Gaussian)."""
    redundant_components: int = 200
    """Components K_R of the mixture that all redundant channels share."""
    redundant_prior: Literal["shared", "normal"] = "shared"
    """Redundant channels: one shared conditional mixture (FARMER), or N(0, I) (JetFormer)."""
    condition_repeats: int = 64
    """Copies M of the class embedding that the prior reads before the tokens."""
    final_permutation: bool = True
    """The prior reads the tokens in the order opposite to the last flow block's."""
    patch_basis: Literal["pixel", "pca", "dct"] = "pixel"
    """Orthonormal basis of a patch: the raw pixels (the paper), PCA of training patches, or DCT."""
    channel_mixing: Literal["none", "learned"] = "none"
    """A learned invertible linear map over the channels before each flow block (Glow)."""
    max_log_scale: float | None = 2.5
    """Smooth bound on |log sigma| in each flow block; None leaves it unbounded (TARFlow)."""
    dropout: float = 0.0
    """Dropout after attention and after the MLP of every transformer layer (ours; small data sets need it)."""
    dequantisation: Literal["uniform", "gaussian"] = "uniform"
    """Noise on the pixels: uniform (a bound on discrete bits/dim) or annealed Gaussian (samples, the paper)."""
    noise_start: float = 0.1
    """Gaussian noise at the start of training, for images in [-1, 1]."""
    noise_final: float = 0.005
    """Gaussian noise at the end of training; samples of the model carry it."""

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "patch_size", "flow_blocks", "flow_layers", "flow_width"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("prior_layers", "prior_width", "head_dim", "components", "redundant_components"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.condition_repeats >= 1, "condition_repeats", self.condition_repeats, "1 or more")
        require(2 <= self.levels <= 256, "levels", self.levels, "2 to 256 (images are stored as bytes)")
        require(self.num_classes >= 0, "num_classes", self.num_classes, "0 or more")
        require(
            self.image_size % self.patch_size == 0,
            "patch_size",
            self.patch_size,
            f"a divisor of image_size ({self.image_size})",
        )
        require(self.tokens >= 2, "patch_size", self.patch_size, "small enough for at least 4 patches")
        for name in ("flow_width", "prior_width"):
            width = getattr(self, name)
            require(width % self.head_dim == 0, name, width, f"a multiple of head_dim ({self.head_dim})")
        require(
            self.informative is None or 1 <= self.informative < self.token_channels,
            "informative",
            self.informative,
            f"1 to {self.token_channels - 1} (a token has {self.token_channels} channels), or None for no split",
        )
        if self.max_log_scale is not None:
            require(
                self.max_log_scale > 0 and self.flow_blocks * self.max_log_scale <= OVERFLOW_BOUND,
                "max_log_scale",
                self.max_log_scale,
                f"above 0 and at most {OVERFLOW_BOUND / self.flow_blocks:g} with {self.flow_blocks} flow blocks "
                f"(their product stays below {OVERFLOW_BOUND:g}, else exp overflows float32)",
            )
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 up to (not including) 1")
        for name, allowed in _LITERALS.items():
            require(getattr(self, name) in allowed, name, getattr(self, name), ", ".join(allowed))
        require(
            self.num_classes > 0 or not self.flow_sees_class, "flow_sees_class", True, "False in a model without labels"
        )
        require(
            0 < self.noise_final <= self.noise_start,
            "noise_final",
            self.noise_final,
            f"above 0 and at most noise_start ({self.noise_start})",
        )

    @property
    def tokens(self) -> int:
        """N, the number of patches."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def token_channels(self) -> int:
        """D, the channels of a token."""
        return self.channels * self.patch_size**2

    @property
    def dimensions(self) -> int:
        """N * D: the numbers in one image."""
        return self.tokens * self.token_channels

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The configuration that `dataclasses.asdict` wrote; an unknown field raises `InputError`."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            require(name in names, "model configuration field", name, ", ".join(names))
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(
                f"model configuration is {values!r} ({error}); allowed: values of the fields' types"
            ) from None


_LITERALS: dict[str, tuple[str, ...]] = {
    "flow": ("autoregressive", "coupling"),
    "informative_channels": ("first", "interleaved"),
    "redundant_prior": ("shared", "normal"),
    "patch_basis": ("pixel", "pca", "dct"),
    "channel_mixing": ("none", "learned"),
    "dequantisation": ("uniform", "gaussian"),
}


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


def _preset(name: str, model: ModelConfig, **training: Any) -> TrainConfig:
    return TrainConfig(model=model, preset=name, out=f"runs/{name}", **training)


def _paper(
    name: str,
    patch_size: int,
    blocks: int,
    layers: int,
    prior_layers: int,
    prior_width: int,
    scale: float,
    scoring: tuple[float, float] = (0.2, 0.9),
) -> TrainConfig:
    """Table 1 and §4.1 at 256x256, guidance from Table 6: w, and (T_pi,v, T_sigma,v) of the weights.

    At patch 8 the paper gives no I, R, K: we take I = 32 of 192, and the same K. The pools of redundant candidates have
    the default sizes of `Guidance`, 192 + 64, which are ours: how many of them count depends on how far p_c and p_u are
    apart (a shift of .1 in each of R = 640 channels at w = 1.5 leaves five), so look at the report of a sample.
    """
    model = ModelConfig(
        image_size=256,
        channels=3,
        patch_size=patch_size,
        num_classes=1000,
        flow_blocks=blocks,
        flow_layers=layers,
        flow_width=768,
        prior_layers=prior_layers,
        prior_width=prior_width,
        informative=128 if patch_size == 16 else 32,
        components=64,
        redundant_components=200,
        condition_repeats=64,
        max_log_scale=2.5,  # 28 and 32 blocks: at most e^80 in all
        dequantisation="gaussian",
    )
    return _preset(
        name,
        model,
        dataset="folder:data/imagenet",
        guidance=Guidance(
            scale=scale,
            candidates_conditional=5,
            candidates_unconditional=5,
            weight_temperature=1.0,
            scale_temperature=0.9 if patch_size == 16 else 1.0,
            scoring_weight_temperature=scoring[0],
            scoring_scale_temperature=scoring[1],
            resampling_temperature=1.1,
        ),
        flip=True,
        steps=1_600_000,  # 320 epochs of ImageNet at batch 256 (§4.1; the batch size is ours)
        batch_size=256,
        learning_rate=1e-4,
        final_learning_rate=1e-6,
        warmup_steps=5000,
        weight_decay=0.03,
        ema_decay=0.9999,
        precision="bfloat16",
        workers=8,
        log_every=100,
        validate_every=10_000,
        sample_every=10_000,
        checkpoint_every=5000,
    )


_DIGITS = ModelConfig(
    image_size=8,
    channels=1,
    levels=17,
    patch_size=2,
    flow_blocks=4,
    flow_layers=2,
    flow_width=64,
    prior_layers=4,
    prior_width=64,
    head_dim=32,
    informative=3,
    components=16,
    redundant_components=16,
    condition_repeats=1,
    max_log_scale=4.0,
    dropout=0.3,
)
_DIGITS_RUN: dict[str, Any] = {"steps": 3500, "learning_rate": 2e-3, "weight_decay": 0.05}
_PHOTOGRAPHS = ModelConfig(
    image_size=16,
    channels=3,
    patch_size=4,
    num_classes=2,
    flow_blocks=4,
    flow_layers=2,
    flow_width=96,
    prior_layers=4,
    prior_width=96,
    head_dim=32,
    informative=12,
    components=16,
    redundant_components=32,
    condition_repeats=1,
    max_log_scale=4.0,
    patch_basis="pca",
)
_MNIST = ModelConfig(
    image_size=28,
    patch_size=4,
    flow_blocks=6,
    flow_layers=2,
    flow_width=256,
    prior_layers=6,
    prior_width=256,
    informative=8,
    components=32,
    redundant_components=64,
    condition_repeats=4,
    max_log_scale=4.0,
    dropout=0.1,
)
_MNIST_RUN: dict[str, Any] = {"steps": 40_000, "batch_size": 128, "weight_decay": 0.05, "ema_decay": 0.999}
_CIFAR10 = ModelConfig(
    image_size=32,
    channels=3,
    patch_size=4,
    flow_blocks=8,
    flow_layers=2,
    flow_width=384,
    prior_layers=6,
    prior_width=384,
    informative=12,
    components=64,
    redundant_components=128,
    condition_repeats=8,
    max_log_scale=4.0,
    patch_basis="pca",
    channel_mixing="learned",
    dropout=0.1,
)
_IMAGENET64 = dataclasses.replace(
    _CIFAR10,
    image_size=64,
    num_classes=1000,
    flow_layers=4,
    flow_width=512,
    prior_layers=12,
    prior_width=768,
    condition_repeats=16,
    dropout=0.0,
)

PRESETS: dict[str, TrainConfig] = {
    preset.preset: preset
    for preset in (
        _preset(
            "tiny",
            dataclasses.replace(
                _DIGITS,
                flow_blocks=2,
                flow_layers=1,
                flow_width=32,
                prior_layers=1,
                prior_width=32,
                head_dim=16,
                components=4,
                redundant_components=4,
                dropout=0.0,
            ),
            steps=200,
            validate_every=100,
            sample_every=100,
            checkpoint_every=50,
            warmup_steps=20,
        ),
        _preset("digits", _DIGITS, **_DIGITS_RUN),
        _preset("digits-noise", dataclasses.replace(_DIGITS, dequantisation="gaussian"), **_DIGITS_RUN),
        _preset("photographs", _PHOTOGRAPHS, dataset="photographs", flip=True, steps=4000, batch_size=32),
        _preset(
            "cifar10-crops",
            dataclasses.replace(_PHOTOGRAPHS, num_classes=10),
            dataset="cifar10-crops",
            flip=True,
            steps=4000,
        ),
        _preset("mnist", _MNIST, dataset="mnist", **_MNIST_RUN),
        _preset("fashion-mnist", _MNIST, dataset="fashion-mnist", **_MNIST_RUN),
        _preset(
            "cifar10",
            _CIFAR10,
            dataset="cifar10",
            flip=True,
            steps=200_000,
            batch_size=128,
            learning_rate=5e-4,
            warmup_steps=1000,
            ema_decay=0.9995,
            precision="bfloat16",
            validate_every=2000,
            sample_every=5000,
            checkpoint_every=2000,
        ),
        _preset(
            "imagenet64",
            _IMAGENET64,
            dataset="folder:data/imagenet",
            flip=True,
            steps=500_000,
            batch_size=256,
            learning_rate=2e-4,
            warmup_steps=5000,
            ema_decay=0.9999,
            precision="bfloat16",
            workers=8,
            log_every=100,
            validate_every=5000,
            sample_every=10_000,
            checkpoint_every=5000,
        ),
        _paper("farmer-1.1b-p16", 16, blocks=28, layers=4, prior_layers=12, prior_width=768, scale=2.5),
        _paper("farmer-1.1b-p8", 8, blocks=28, layers=4, prior_layers=12, prior_width=768, scale=2.0),
        _paper("farmer-1.9b-p16", 16, blocks=32, layers=6, prior_layers=24, prior_width=1024, scale=3.5),
        _paper(
            "farmer-1.9b-p8",
            8,
            blocks=32,
            layers=6,
            prior_layers=24,
            prior_width=1024,
            scale=1.5,
            scoring=(0.1, 1.0),
        ),
    )
}
"""Every preset, by name: `PRESETS["digits"]` is a run, `PRESETS["digits"].model` its model."""
