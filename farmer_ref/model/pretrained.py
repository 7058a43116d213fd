"""Models and students on disk and on the Hub: the base classes of `Farmer` and `OneStepStudent`.

Legend: n flow blocks.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self, Unpack, get_args

import torch
from torch import Tensor

from farmer_ref.model.config import ModelConfig, StudentForm, read_config
from farmer_ref.model.flow import AutoregressiveFlow
from farmer_ref.support.errors import InputError
from farmer_ref.support.files import (
    build,
    load_weights,
    pretrained_folder,
    read_metadata,
    write_config,
    write_weights,
)
from farmer_ref.support.hub import DownloadOptions, PushOptions, push_run

STUDENT = "student.safetensors"


class Pretrained:
    """A model of a `config` that can be saved, loaded and shared: safetensors and JSON."""

    def save_pretrained(self, path: str | Path) -> None:
        """Write model.safetensors and config.json into the folder `path`, each replaced by one rename."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, {"model": dataclasses.asdict(self.config)})
        write_weights(folder / "model.safetensors", self.state_dict())

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Unpack[DownloadOptions]) -> Self:
        """A trained model, in evaluation mode: one that ships with the package, a run folder, or owner/name of the Hub.

        Raises `InputError` where there is none, or where its files are damaged.

        >>> from farmer_ref import Farmer
        >>> model = Farmer.from_pretrained("digits")
        >>> model.config.image_size, model.config.tokens, model.training
        (8, 16, False)
        """
        folder = pretrained_folder(name, **options)
        config = read_config(folder).model
        return build(lambda: cls(config), folder / "model.safetensors", numbers=least_parameters(config)).eval()

    def push_to_hub(self, repository: str, **options: Unpack[PushOptions]) -> str:
        """Upload the model to owner/name of the Hugging Face Hub; the commit's address.

        The model alone: `hub.push_run` uploads a run folder with its student and its settings.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_run(folder, repository, **options)


class PretrainedStudent:
    """A one-step student that can be saved and loaded, with its form and a fingerprint of its teacher."""

    @classmethod
    def from_pretrained(
        cls, name: str | Path, flow: AutoregressiveFlow | None = None, **options: Unpack[DownloadOptions]
    ) -> Self:
        """The trained student of a run folder, a shipped model or a repository of the Hub, in evaluation mode.

        Its form is that of its file. `flow` is its teacher, if that is loaded already. Raises `InputError` where there
        is no student, where its file does not say its form, or where it was distilled from other weights.

        >>> import torch
        >>> from farmer_ref import Farmer, OneStepStudent
        >>> model = Farmer.from_pretrained("digits")
        >>> student = OneStepStudent.from_pretrained("digits", model.flow)
        >>> model.sample(torch.arange(10), student=student).shape
        torch.Size([10, 1, 8, 8])
        """
        folder = pretrained_folder(name, **options)
        if not (folder / STUDENT).is_file():
            raise InputError(
                f"run is {str(name)!r}, which holds no student; allowed: one that was distilled "
                f"(python -m farmer_ref.distill --run {name})"
            )
        form = read_metadata(folder / STUDENT).get("form")
        if form not in get_args(StudentForm):
            raise InputError(
                f"the form of {folder / STUDENT} is {form!r}; allowed: 'forward' or 'inverse' in the file's metadata, "
                "as distill writes it (distil again)"
            )
        if flow is None:
            flow = _flow_of(folder)
        student = cls.from_teacher(flow, form=form)
        load_weights(student, folder / STUDENT)
        if not student.taught_by(flow):
            raise InputError(
                f"{folder / STUDENT} was distilled from other weights than {folder / 'model.safetensors'}; "
                "allowed: the student of these (distil again)"
            )
        return student.eval()

    def save(self, path: Path) -> None:
        """Write the weights, and the form beside them, to a safetensors file."""
        write_weights(path, self.state_dict(), {"form": self.form})

    def taught_by(self, flow: AutoregressiveFlow) -> bool:
        """Whether this is the student of these weights, or of weights that half precision rounds to these."""
        ours, theirs = self.teacher_fingerprint.cpu().double(), fingerprint(flow).double()
        # Rounding moves each weight by half a step at most, and a sum of many by less than a step of their norm.
        own_step, step = (torch.finfo(t.dtype).eps for t in (self.teacher_fingerprint, flow.blocks[0].positions))
        tolerance = step * fingerprint_norm(flow) + (own_step + 1e-5) * ours.abs()
        return bool(((ours - theirs).abs() <= tolerance).all())


def least_parameters(config: ModelConfig) -> int:
    """The numbers in a model's largest matrices: computed without making any, and below the count of all parameters."""
    tokens, channels, informative = config.tokens, config.token_channels, config.informative or config.token_channels
    flow, prior = config.flow_width, config.prior_width
    blocks = config.flow_blocks * config.flow_layers * 12 * flow**2
    if config.flow == "autoregressive":
        blocks += config.flow_blocks * flow * (tokens + 3 * channels)
    heads = config.components * (1 + 2 * informative)
    if channels > informative and config.redundant_prior == "shared":
        heads += config.redundant_components * (1 + 2 * (channels - informative))
    return blocks + channels**2 + prior * (12 * config.prior_layers * prior + tokens + heads + config.num_classes)


def _flow_of(folder: Path) -> AutoregressiveFlow:
    """The flow alone of the model in a folder."""
    config = read_config(folder).model
    return build(
        lambda: AutoregressiveFlow(config.tokens, config.token_channels, **config.flow_settings()),
        folder / "model.safetensors",
        numbers=least_parameters(config),
        part="flow.",
    )


@torch.no_grad()
def fingerprint(flow: AutoregressiveFlow) -> Tensor:
    """One number per block (n,), which changes with the weights: a flow that was trained further has others."""
    return torch.stack([terms.sum() for terms in _fingerprint_terms(flow)]).float()


@torch.no_grad()
def fingerprint_norm(flow: AutoregressiveFlow) -> Tensor:
    """The Euclidean norm (n,) of the terms that each entry of `fingerprint` sums: rounding errors scale with it."""
    return torch.stack([terms.norm() for terms in _fingerprint_terms(flow)])


def _fingerprint_terms(flow: AutoregressiveFlow) -> Iterator[Tensor]:
    for block in flow.blocks:
        weights = torch.cat([p.detach().flatten() for p in block.parameters()]).double().cpu()
        yield weights * torch.arange(len(weights)).double().cos()
