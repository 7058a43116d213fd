"""The one-step student of the flow's inverse and its training losses (§3.5, Alg. 2).

The exact inverse takes n (N - 1) sequential steps. But the teacher's *forward* pass shows the whole path, X = Z^0 to
Z^n, for any image, in parallel; so a student can learn to walk it backwards, one pass of the network per block.

Legend: B batch, N tokens, D channels of a token, n flow blocks; Z^t is the output of block t of the flow, X = Z^0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn

from farmer_ref.model.config import ModelConfig
from farmer_ref.model.flow import AutoregressiveFlow, FlowBlock
from farmer_ref.model.transformer import TrainingPass
from farmer_ref.support.errors import InputError
from farmer_ref.support.files import load_weights, pretrained_folder, read_config, read_weights
from farmer_ref.support.hub import DownloadOptions

STUDENT = "student.safetensors"
LOSSES = ("hidden", "output", "alignment")


class StudentBlock(nn.Module):
    """Z^t to about Z^{t-1} in one step: z / sigma(z) + mu(z), where mu and sigma see *all* tokens   (Alg. 2)

    A flow block without the causal mask. Ours, where the paper is silent: the form of the exact inverse (Eq. 9), with
    outputs shifted by a token and z where that has x. With the mask, and untrained, it would be the first Jacobi sweep
    of the inverse (`jacobi`); the first token passes through, as it does there.
    """

    def __init__(self, network: FlowBlock):
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, labels: Tensor | None = None, training: TrainingPass | None = None) -> Tensor:
        """z (B,N,D) to x (B,N,D), approximately the tokens that the teacher's block maps to z."""
        z = self.network.flip_if_reversed(z)
        shift, log_scale = self.network.all_shifts_and_log_scales(z, labels, training)
        x = self.network.flip_if_reversed(z * torch.exp(-log_scale) + shift)
        return x if self.network.mixing is None else self.network.mixing.inverse(x)


class OneStepStudent(nn.Module):
    """n student blocks, last flow block first: latents to tokens in one pass. Not invertible, and not exact."""

    teacher_fingerprint: Tensor

    def __init__(self, tokens: int, channels: int, *, blocks: int, **options: Any):
        """`blocks` is their number n; `options` are those of `FlowBlock`, the same for all blocks."""
        super().__init__()
        networks = AutoregressiveFlow(tokens, channels, blocks=blocks, causal=False, **options).blocks
        self.blocks = nn.ModuleList(StudentBlock(network) for network in networks)
        self.register_buffer("teacher_fingerprint", torch.zeros(blocks))  # saved with the weights: whose student it is

    @classmethod
    def from_teacher(cls, flow: AutoregressiveFlow, *, dropout: float = 0.0) -> Self:
        """A student that starts at the teacher's weights, to be trained (§3.5). Its dropout is its own."""
        with torch.device("meta"):  # no weights to draw: the teacher's are copied
            student = cls(flow.tokens, flow.channels, **{**flow.options, "dropout": dropout})
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

        `flow` is its teacher, if that is loaded already. Raises `InputError` where there is no student, or where it
        was distilled from other weights.
        """
        folder = pretrained_folder(name, **options)
        if not (folder / STUDENT).is_file():
            raise InputError(
                f"run is {str(name)!r}, which holds no student; allowed: one that was distilled "
                f"(python -m farmer_ref.distill --run {name})"
            )
        if flow is None:
            flow = _flow_of(folder)
        student = cls.from_teacher(flow)
        load_weights(student, folder / STUDENT)
        if not student.taught_by(flow):
            raise InputError(
                f"{folder / STUDENT} was distilled from other weights than {folder / 'model.safetensors'}; "
                "allowed: the student of these (distil again)"
            )
        return student.eval()

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
    """The Euclidean norm (n,) of the terms that each number of `fingerprint` adds up: rounding errors scale with it."""
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

    `hidden`, the paper's: the squared error of every level, mean over blocks (and over B, N, D). With a Gaussian of
    fixed variance v around each prediction, it is the KL divergence from teacher to student, per number, times 2 v.
    `output`: the squared error of Z^0 alone.
    `alignment`: that of Z^0, plus the mean over the other levels of the error of a small head that reads the teacher's
    level off the student's, which then need not be the same (as BiFlow's, arXiv 2512.10953). The heads are thrown away.
    """

    def __init__(self, student: OneStepStudent, loss: str, *, channels: int, width: int):
        super().__init__()
        if loss not in LOSSES:
            raise InputError(f"loss is {loss!r}; allowed: {', '.join(LOSSES)}")
        self.student, self.loss = student, loss
        heads = len(student.blocks) - 1 if loss == "alignment" else 0
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
        if self.loss == "alignment":
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
