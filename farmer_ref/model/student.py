"""The one-step student of the flow's inverse and its training losses (§3.5, Alg. 2).

The exact inverse takes n (N - 1) sequential steps. But the teacher's *forward* pass shows the whole path, X = Z^0 to
Z^n, for any image, in parallel; so a student can learn to walk it backwards, one pass of the network per block.

A student has one of two forms. "forward", the paper's: its blocks compute what the teacher's compute, (z - mu) * sigma
(Eq. 8). "inverse", ours: they compute z / sigma + mu, as the exact inverse does (Eq. 9).

Legend: B batch, N tokens, D channels of a token, n flow blocks; Z^t is the output of block t of the flow, X = Z^0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self, Unpack, get_args

import torch
from torch import Tensor, nn

from farmer_ref.model.config import ModelConfig
from farmer_ref.model.flow import AutoregressiveFlow, FlowBlock
from farmer_ref.model.transformer import TrainingPass
from farmer_ref.support.errors import InputError, require
from farmer_ref.support.files import (
    load_weights,
    pretrained_folder,
    read_config,
    read_metadata,
    read_weights,
    write_weights,
)
from farmer_ref.support.hub import DownloadOptions

STUDENT = "student.safetensors"
Form = Literal["forward", "inverse"]
Loss = Literal["hidden", "output", "projected"]


class StudentBlock(nn.Module):
    """Z^t to about Z^{t-1} in one step, by a flow block without the causal mask   (Alg. 2)

    Its mu and sigma see *all* tokens of z. As in the teacher, they are shifted right by one token, and the first token
    passes through. `form`: "forward" is the paper's, the form of the teacher's forward pass (Eq. 8, Fig. 3). "inverse"
    is ours, Eq. 9 with z where that has x: with the mask, and untrained, it is one Jacobi sweep (`jacobi`).
    """

    def __init__(self, network: FlowBlock, form: Form):
        super().__init__()
        self.network, self.form = network, form

    def forward(self, z: Tensor, labels: Tensor | None = None, training: TrainingPass | None = None) -> Tensor:
        """z (B,N,D) to x (B,N,D), approximately the tokens that the teacher's block maps to z."""
        z = self.network.flip_if_reversed(z)
        shift, log_scale = self.network.all_shifts_and_log_scales(z, labels, training)
        x = (
            (z - shift) * log_scale.exp()  # as in Eq. 8
            if self.form == "forward"
            else z * torch.exp(-log_scale) + shift  # as in Eq. 9
        )
        x = self.network.flip_if_reversed(x)
        return x if self.network.mixing is None else self.network.mixing.inverse(x)


class OneStepStudent(nn.Module):
    """n student blocks, last flow block first: latents to tokens in one pass. Not invertible, and not exact."""

    teacher_fingerprint: Tensor

    def __init__(self, tokens: int, channels: int, *, blocks: int, form: Form = "forward", **options: Any):
        """`blocks` is their number n; `options` are those of `FlowBlock`; both, and `form`, are the same for all."""
        super().__init__()
        require(form in get_args(Form), "form", form, "'forward', 'inverse'")
        self.form = form
        networks = AutoregressiveFlow(tokens, channels, blocks=blocks, causal=False, **options).blocks
        self.blocks = nn.ModuleList(StudentBlock(network, form) for network in networks)
        self.register_buffer("teacher_fingerprint", torch.zeros(blocks))  # saved with the weights: whose student it is

    @classmethod
    def from_teacher(cls, flow: AutoregressiveFlow, *, form: Form = "forward", dropout: float = 0.0) -> Self:
        """A student that starts at the teacher's weights, to be trained (§3.5). Its dropout is its own."""
        with torch.device("meta"):  # no weights to draw: the teacher's are copied
            student = cls(flow.tokens, flow.channels, form=form, **{**flow.options, "dropout": dropout})
        for block, teacher in zip(student.blocks, flow.blocks, strict=True):
            copied = {name: weight.detach().clone() for name, weight in teacher.state_dict().items()}
            block.network.load_state_dict(copied, assign=True)
        student.teacher_fingerprint = fingerprint(flow).to(next(flow.parameters()).device)
        return student

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
        if form not in get_args(Form):
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

    def path(self, z: Tensor, labels: Tensor | None = None, training: TrainingPass | None = None) -> list[Tensor]:
        """The student's Z^{n-1}, ..., Z^0, each (B,N,D), on its own way down from z = Z^n (B,N,D)   (Alg. 2)."""
        levels = []
        for block in reversed(self.blocks):
            z = block(z, labels, training)
            levels.append(z)
        return levels

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents z (B,N,D) to approximately `flow.inverse(z)` (B,N,D)."""
        return self.path(z, labels)[-1]


def _flow_of(folder: Path) -> AutoregressiveFlow:
    """The flow alone of the model in a folder."""
    config = ModelConfig.from_dict(read_config(folder)["model"])
    flow = AutoregressiveFlow(config.tokens, config.token_channels, **config.flow_settings())
    weights = read_weights(folder / "model.safetensors")
    flow.load_state_dict({name.removeprefix("flow."): w for name, w in weights.items() if name.startswith("flow.")})
    return flow


@torch.no_grad()
def fingerprint(flow: AutoregressiveFlow) -> Tensor:
    """One number per block (n,) that tells other weights apart, such as those of a flow that was trained further."""
    return torch.stack([terms.sum() for terms in _fingerprint_terms(flow)]).float()


@torch.no_grad()
def fingerprint_norm(flow: AutoregressiveFlow) -> Tensor:
    """The Euclidean norm (n,) of the terms that each entry of `fingerprint` sums: rounding errors scale with it."""
    return torch.stack([terms.norm() for terms in _fingerprint_terms(flow)])


def _fingerprint_terms(flow: AutoregressiveFlow) -> Iterator[Tensor]:
    for block in flow.blocks:
        weights = torch.cat([p.detach().flatten() for p in block.parameters()]).double().cpu()
        yield weights * torch.arange(len(weights)).double().cos()


@torch.no_grad()
def teacher_path(flow: AutoregressiveFlow, x: Tensor, labels: Tensor | None = None) -> list[Tensor]:
    """The teacher's Z^0 = x, Z^1, ..., Z^n, each (B,N,D), in one pass   (Alg. 2)."""
    levels = [x]
    for block in flow.blocks:
        levels.append(block(levels[-1], labels)[0])
    return levels


class Distillation(nn.Module):
    """A student and what it minimises, from the teacher's path and its own   (Alg. 2)

    `hidden`, the paper's: the squared error of every level, mean over blocks (and over B, N, D). With a Gaussian of the
    same fixed variance v around the teacher's *and* around the student's level, it is the KL divergence between the
    two, per number, times 2 v. (Without the teacher's Gaussian it is a cross-entropy, up to constants.)
    `output`: the squared error of Z^0 alone.
    `projected`, ours: that of Z^0, plus the mean over the other levels of the error of a small head that predicts the
    teacher's level from the student's, which then need not be the same. The heads are thrown away. (BiFlow's alignment
    loss, arXiv 2512.10953, is another: its heads read hidden states, which are never forced into token space.)
    """

    def __init__(self, student: OneStepStudent, loss: Loss, *, channels: int, width: int):
        super().__init__()
        require(loss in get_args(Loss), "loss", loss, ", ".join(get_args(Loss)))
        self.student, self.loss = student, loss
        heads = len(student.blocks) - 1 if loss == "projected" else 0
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, channels)) for _ in range(heads)
        )

    def forward(
        self,
        z: Tensor,
        teacher_levels: list[Tensor],
        labels: Tensor | None = None,
        training: TrainingPass | None = None,
    ) -> Tensor:
        """The loss, a scalar, of the student's path down from z (B,N,D) beside the teacher's Z^0, ..., Z^n."""
        *levels, output = self.student.path(z, labels, training)
        *targets, image = teacher_levels[-2::-1]  # Z^{n-1}, ..., Z^1 and Z^0
        error = (output - image).square().mean()
        if self.loss == "output":
            return error
        if self.loss == "projected":
            levels = [head(level) for head, level in zip(self.heads, levels, strict=True)]
        hidden = [(a - b).square().mean() for a, b in zip(levels, targets, strict=True)]
        if self.loss == "hidden":
            return torch.stack([error, *hidden]).mean()
        return error + sum(hidden) / max(1, len(hidden))


@torch.no_grad()
def relative_errors(student_levels: list[Tensor], teacher_levels: list[Tensor]) -> list[float]:
    """|student - teacher| / |teacher| of Z^{n-1}, ..., Z^0, each over the whole batch."""
    targets = teacher_levels[-2::-1]
    return [float((a - b).norm() / b.norm()) for a, b in zip(student_levels, targets, strict=True)]
