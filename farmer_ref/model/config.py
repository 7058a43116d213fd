"""Every setting of a model: a frozen dataclass, validated when it is made.

The command lines are derived from it, so a field's docstring is also its `--help`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from farmer_ref.support.errors import InputError, require

# e^88.7 is float32's largest number. The log-scales of one channel in the affine maps of all blocks add up to less;
# what learned channel mixing adds is not bounded.
OVERFLOW_BOUND = 80.0
StudentForm = Literal["forward", "inverse"]
"""The two forms of a one-step student: the paper's, and ours (see `student`)."""


@dataclass(frozen=True)
class ModelConfig:
    """What a `Farmer` is made of (Table 1 of the paper). Saved with the weights as JSON.

    >>> from farmer_ref import ModelConfig
    >>> config = ModelConfig(image_size=32, channels=3, patch_size=4)
    >>> config.tokens, config.token_channels  # N, D
    (64, 48)
    """

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

    @property
    def prior_reversed(self) -> bool:
        """Whether the prior reads the tokens back to front: against the last flow block's order, or with it (§4.3)."""
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
