"""Every setting of a model: a frozen dataclass, validated when it is made.

The command lines are derived from it, so a field's docstring is also its `--help`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from farmer_ref.support.errors import require
from farmer_ref.support.files import read_json
from farmer_ref.support.settings import Count, Dropout, settings_class

Depth = Annotated[int, Field(ge=1, le=1000)]  # a mistyped depth would take hours to build

# float32 overflows at e^88.7. The log-scales of one channel, summed over the affine maps of all blocks, stay below
# that; learned channel mixing adds to them without a bound.
OVERFLOW_BOUND = 80.0
NULL_LABEL = -1  # "no label": the null class, learned from training labels dropped at random
StudentForm = Literal["forward", "inverse"]
"""The two forms of a one-step student: the paper's, and ours (see `student`)."""


@settings_class(known_as="model")
class ModelConfig:
    """The settings of a `Farmer` (Table 1 of the paper), saved with the weights as JSON.

    >>> from farmer_ref import ModelConfig
    >>> config = ModelConfig(image_size=32, channels=3, patch_size=4)
    >>> config.tokens, config.token_channels  # N, D
    (64, 48)
    """

    image_size: PositiveInt = 8
    """Height and width of the (square) images."""
    channels: PositiveInt = 1
    """Colour channels."""
    levels: Annotated[int, Field(ge=2, le=256)] = 256
    """Grey levels per colour channel (256 for 8-bit images, 17 for scikit-learn's digits)."""
    patch_size: PositiveInt = 2
    """Side p of a patch; a token has D = channels * p * p channels."""
    num_classes: NonNegativeInt = 10
    """Number of labels; 0 for a model without labels."""
    class_names: tuple[str, ...] = ()
    """The names of the labels, in order, by which a folder's classes are matched; `train` takes them from the data."""
    flow: Literal["autoregressive", "coupling"] = "autoregressive"
    """The kind of flow: the paper's, or affine coupling (the baseline of its Table 4)."""
    flow_blocks: Depth = 4
    """Blocks n of the flow."""
    flow_layers: Depth = 2
    """Transformer layers in each flow block."""
    flow_width: PositiveInt = 64
    """Width of the flow's transformers."""
    flow_sees_class: bool = False
    """Give the label to the flow, too (TARFlow does; the paper does not say)."""
    prior_layers: Depth = 4
    """Transformer layers of the autoregressive prior."""
    prior_width: PositiveInt = 64
    """Width of the prior's transformer."""
    head_dim: PositiveInt = 64
    """Width of an attention head."""
    informative: PositiveInt | None = None
    """Informative channels I of a token; None means no split (I = D)."""
    informative_channels: Literal["first", "interleaved"] = "first"
    """Which channels are informative: the first I, or I spread evenly over the token."""
    components: PositiveInt = 64
    """Components K_I of the mixture of a token (1: a single Gaussian)."""
    redundant_components: PositiveInt = 200
    """Components K_R of the mixture that all redundant channels share."""
    redundant_prior: Literal["shared", "normal"] = "shared"
    """Redundant channels: one shared conditional mixture (FARMER), or N(0, I) (JetFormer)."""
    condition_repeats: Count = 64
    """Copies M of the class embedding that the prior reads before the tokens."""
    final_permutation: bool = True
    """The prior reads the tokens in the order opposite to the last flow block's."""
    patch_basis: Literal["pixel", "pca", "dct"] = "pixel"
    """Orthonormal basis of a patch: the raw pixels (the paper), PCA of training patches, or DCT."""
    channel_mixing: Literal["none", "learned"] = "none"
    """A learned invertible linear map over the channels before each flow block (Glow)."""
    max_log_scale: PositiveFloat | None = 2.5
    """Smooth bound on |log sigma| in each flow block; None leaves it unbounded (TARFlow)."""
    dropout: Dropout = 0.0
    """Dropout after attention and after the MLP of every transformer layer (ours; small data sets need it)."""
    pixels: Literal["linear", "histogram"] = "linear"
    """Coordinates of the pixels: linear in [-1, 1], or normal scores by the training pixels' histogram (ours)."""
    dequantisation: Literal["uniform", "gaussian"] = "uniform"
    """Noise on the pixels: uniform (a bound on discrete bits/dim) or annealed Gaussian (samples, the paper)."""
    noise_width: NonNegativeInt = 0
    """Channels of a ConvNet that fits the uniform noise to the image: variational dequantisation (ours); 0 for none."""
    noise_start: PositiveFloat = 0.1
    """Gaussian noise at the start of training, for images in [-1, 1]."""
    noise_final: PositiveFloat = 0.005
    """Gaussian noise at the end of training; samples of the model carry it."""

    def __post_init__(self) -> None:
        side, patch, width = self.image_size, self.patch_size, self.token_channels
        require(side % patch == 0, "patch_size", patch, f"a divisor of image_size ({side})")
        require(self.tokens >= 2, "patch_size", patch, "small enough for at least 4 patches")
        depth = self.flow_blocks * self.flow_layers
        require(depth <= 2000, "flow_layers", self.flow_layers, f"at most {2000 // self.flow_blocks}, in every block")
        for name in ("flow_width", "prior_width"):
            value = getattr(self, name)
            require(value % self.head_dim == 0, name, value, f"a multiple of head_dim ({self.head_dim})")
        require(
            self.informative is None or self.informative < width,
            "informative",
            self.informative,
            f"1 to {width - 1} (a token has {width} channels), or None for no split",
        )
        require(
            self.max_log_scale is None or self.flow_blocks * self.max_log_scale <= OVERFLOW_BOUND,
            "max_log_scale",
            self.max_log_scale,
            f"above 0 and at most {OVERFLOW_BOUND / self.flow_blocks:g} with {self.flow_blocks} flow blocks "
            f"(their product stays below {OVERFLOW_BOUND:g}, else exp overflows float32)",
        )
        names, classes = self.class_names, self.num_classes > 0
        allowed = f"{self.num_classes} different names (num_classes), or none"
        require(not names or len(set(names)) == len(names) == self.num_classes, "class_names", names, allowed)
        require(classes or not self.flow_sees_class, "flow_sees_class", True, "False in a model without labels")
        require(
            self.pixels == "linear" or self.dequantisation == "uniform",
            "pixels",
            self.pixels,
            "linear with Gaussian noise (a histogram is one of grey levels)",
        )
        require(
            not self.noise_width or self.dequantisation == "uniform",
            "noise_width",
            self.noise_width,
            "0 with Gaussian noise (learned noise moves pixels within their grey levels)",
        )
        noise, most = self.noise_final, self.noise_start
        require(noise <= most, "noise_final", noise, f"above 0 and at most noise_start ({most})")

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

    @property
    def gradient_bytes(self) -> int:
        """About what a gradient for one image takes in float32 if layers are recomputed (exactly: `training.costs`).

        The inputs of all layers; the flow's tokens and the mixtures, some numbers for each; and one layer's own.
        """
        blocks, read = self.flow_blocks * self.tokens, self.condition_repeats + self.tokens
        layers = blocks * (self.flow_layers + 1) * self.flow_width + read * self.prior_layers * self.prior_width
        mixtures = self.tokens * self.components * (1 + 2 * (self.informative or self.token_channels))
        own = 25 * read * max(self.flow_width, self.prior_width)
        return 4 * (layers + 7 * blocks * self.token_channels + 6 * mixtures + own)

    @property
    def prior_reversed(self) -> bool:
        """Whether the prior reads the tokens back to front: against the order of the last flow block, or with it.

        The paper's final permutation (§4.3 there).
        """
        last_block_reversed = self.flow_blocks % 2 == 0
        return last_block_reversed != self.final_permutation

    def flow_settings(self) -> dict[str, Any]:
        """The keyword arguments of the flow, of either kind."""
        return {
            "blocks": self.flow_blocks,
            "layers": self.flow_layers,
            "width": self.flow_width,
            "head_dim": self.head_dim,
            "max_log_scale": self.max_log_scale,
            "channel_mixing": self.channel_mixing == "learned",
            "num_classes": self.num_classes if self.flow_sees_class else None,
            "dropout": self.dropout,
        }


@settings_class
class SavedConfig:
    """config.json, beside a model's weights."""

    model: ModelConfig
    """The model's settings."""
    training: dict[str, Any] | None = None
    """Those of the run that trained it, if there was one (`farmer_ref.training.runs` reads them)."""
    data: dict[str, Any] | None = None
    """What the run's folder of images held, if it was one."""


def read_config(folder: Path) -> SavedConfig:
    """config.json of a folder; a missing or damaged one raises `InputError`."""
    return read_json(folder / "config.json", SavedConfig)
