"""FARMER on one page: patches, the flow, the prior, and what they give together - exact likelihood and samples.

    image --patchify--> X --flow--> Z, log|det| --split--> Z_I, Z_R --prior--> mixtures --> log p(Z)
    log p(image | c) = log p(Z_I | c) + log p(Z_R | Z_I, c) + log|det dZ/dX|

Legend: B batch, N tokens, D channels of a token. A log-density is a per-image sum in nats, (B,).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from farmer_ref.config import ModelConfig
from farmer_ref.errors import InputError
from farmer_ref.flow import AutoregressiveFlow
from farmer_ref.prior import NULL_LABEL, AutoregressivePrior
from farmer_ref.tokens import Dequantiser, Patchify

PRETRAINED = Path(__file__).parent / "pretrained"  # weights that ship with the package


class LikelihoodTerms(NamedTuple):
    """The three parts of log p(image | c), each (B,), in nats; `total` is their exact sum."""

    informative: Tensor
    redundant: Tensor
    logdet: Tensor

    @property
    def total(self) -> Tensor:
        """log p(image | c) (B,), nats."""
        return self.informative + self.redundant + self.logdet


class Farmer(nn.Module):
    """An exact density of images, and a sampler of it: p(x | c) = p(Z | c) |det dZ/dX|   (Eqs. 5, 10, 14)

    Images (B,C,H,W) lie in [-1, 1] and are already dequantised; labels are (B,), -1 or None meaning "no label".
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.dequantiser = Dequantiser(config.dequantisation, config.levels, config.noise_start, config.noise_final)
        self.patchify = Patchify(config.image_size, config.channels, config.patch_size, config.patch_basis)
        self.flow = AutoregressiveFlow(
            config.tokens,
            config.token_channels,
            config.flow_blocks,
            config.flow_layers,
            config.flow_width,
            config.head_dim,
            config.max_log_scale,
            channel_mixing=config.channel_mixing == "learned",
            num_classes=config.num_classes if config.flow_sees_class else None,
            dropout=config.dropout,
        )
        last_block_reversed = config.flow_blocks % 2 == 0
        self.prior = AutoregressivePrior(
            config.tokens,
            config.token_channels,
            config.prior_layers,
            config.prior_width,
            config.head_dim,
            config.num_classes,
            config.components,
            config.informative,
            config.informative_channels,
            config.redundant_components,
            config.redundant_prior,
            config.condition_repeats,
            reverse=last_block_reversed != config.final_permutation,  # on: opposite to the last block (§4.2)
            dropout=config.dropout,
        )

    # -- likelihood ------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, labels: Tensor | None = None) -> LikelihoodTerms:
        """The terms of log p(images | labels), each (B,), nats: what training maximises   (Eqs. 10 and 12-14)."""
        z, logdet = self.flow(self.patchify(images), labels)
        prior = self.prior.log_prob_parts(z, labels)
        return LikelihoodTerms(prior.informative, prior.redundant, logdet)

    def likelihood_terms(self, images: Tensor, labels: Tensor | None = None) -> LikelihoodTerms:
        """`forward` with the labels checked: .informative, .redundant, .logdet, each (B,), and .total."""
        self._check_labels(labels)
        return self(images, labels)

    def log_prob(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(images | labels) (B,), nats per image."""
        return self.likelihood_terms(images, labels).total

    # -- the flow's two directions ---------------------------------------------------------------------------------

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images to latents z (B,N,D) and log|det| (B,)."""
        self._check_labels(labels)
        return self.flow(self.patchify(images), labels)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents z (B,N,D) to images: the exact inverse of `encode`, not clipped."""
        self._check_labels(labels)
        return self.patchify.inverse(self.flow.inverse(z, labels))

    # -- samples ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One image for each label (B,): (B,C,H,W), clipped to [-1, 1]. -1 asks for any class."""
        self._check_labels(labels)
        with evaluating(self):
            return self.decode(self.prior.sample(labels, generator), labels).clamp(-1, 1)

    def _check_labels(self, labels: Tensor | None) -> None:
        if labels is None or not len(labels):
            return
        low, high = int(labels.min()), int(labels.max())
        if low < NULL_LABEL or high >= self.config.num_classes:
            given = low if low < NULL_LABEL else high
            raise InputError(f"label is {given}; allowed: 0 to {self.config.num_classes - 1}, or -1 for no label")

    # -- weights on disk: safetensors and JSON, nothing is ever unpickled --------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write model.safetensors and config.json into the folder `path`, each replaced by one rename."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, {"model": dataclasses.asdict(self.config)})
        write_weights(folder / "model.safetensors", self.state_dict())

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Farmer:
        """A trained model, in evaluation mode: the name of one that ships with the package, or a run folder.

        Raises `InputError` where there is none, or where its files are damaged.
        """
        folder = pretrained_folder(name)
        model = cls(ModelConfig.from_dict(read_config(folder)["model"]))
        load_weights(model, folder / "model.safetensors")
        return model.eval()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: dropout off, whatever the mode before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def pretrained_folder(name: str | Path) -> Path:
    """The folder of a shipped model's name, or a folder that holds config.json and model.safetensors."""
    shipped = sorted(path.name for path in PRETRAINED.glob("*/"))
    for folder in (Path(name), PRETRAINED / str(name)):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise InputError(
        f"model is {str(name)!r}, which holds no config.json with model.safetensors; "
        f"allowed: a run folder, or one of {', '.join(shipped)}"
    )


def read_config(folder: Path) -> dict:
    """config.json of a run folder."""
    try:
        values = json.loads((folder / "config.json").read_text())
        if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
            raise ValueError("it describes no FARMER model")
        return values
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / 'config.json'} cannot be read ({error}); allowed: the file of a run folder"
        ) from None


def write_config(folder: Path, values: dict) -> None:
    """config.json of a run folder, replaced by one rename."""
    replace_file(folder / "config.json", lambda path: path.write_text(json.dumps(values, indent=2) + "\n"))


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """A safetensors file, replaced by one rename."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    replace_file(path, lambda temporary: save_file(plain, temporary))


def read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file; a missing or damaged one raises `InputError` with its name."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); allowed: a whole safetensors file") from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model; weights that do not fit raise `InputError`."""
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        raise InputError(f"{path} does not fit its config.json ({str(error).splitlines()[-1].strip()})") from None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, flush to the disk, then rename: at any instant the old file or the new one is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Force a file or a folder onto the disk. Windows, which cannot open a folder, keeps renames safe by itself."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
