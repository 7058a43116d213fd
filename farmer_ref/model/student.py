"""The one-step student of the flow's inverse and its training losses (§3.5, Alg. 2).

The exact inverse takes n (N - 1) sequential steps. But the teacher's *forward* pass shows the whole path, X = Z^0 to
Z^n, for any image, in parallel; so a student can learn to walk it backwards, one pass of the network per block.

A student has one of two forms. "forward", the paper's: its blocks compute what the teacher's compute, (z - mu) * sigma
(Eq. 8). "inverse", ours: they compute z / sigma + mu, as the exact inverse does (Eq. 9).

Legend: B batch, N tokens, D channels of a token, n flow blocks; Z^t is the output of block t of the flow, X = Z^0.
"""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from farmer_ref.model.config import StudentForm
from farmer_ref.model.flow import AutoregressiveFlow, FlowBlock
from farmer_ref.model.pretrained import PretrainedStudent, fingerprint
from farmer_ref.model.transformer import TrainingPass
from farmer_ref.support.errors import require

Loss = Literal["hidden", "output", "projected"]


class StudentBlock(nn.Module):
    """Z^t to about Z^{t-1} in one step, by a flow block without the causal mask   (Alg. 2)

    Its mu and sigma see *all* tokens of z. As in the teacher, they are shifted right by one token, and the first token
    passes through. `form`: "forward" is the paper's, the form of the teacher's forward pass (Eq. 8, Fig. 3). "inverse"
    is ours, Eq. 9 with z where that has x: with the mask, and untrained, it is one Jacobi sweep (`jacobi`).
    """

    def __init__(self, network: FlowBlock, form: StudentForm):
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


class OneStepStudent(PretrainedStudent, nn.Module):
    """n student blocks, last flow block first: latents to tokens in one pass. Not invertible, and not exact."""

    teacher_fingerprint: Tensor

    def __init__(self, tokens: int, channels: int, *, blocks: int, form: StudentForm = "forward", **options: Any):
        """`blocks` is their number n; `options` are those of `FlowBlock`; both, and `form`, are the same for all."""
        super().__init__()
        require(form in get_args(StudentForm), "form", form, "'forward', 'inverse'")
        self.form = form
        networks = AutoregressiveFlow(tokens, channels, blocks=blocks, causal=False, **options).blocks
        self.blocks = nn.ModuleList(StudentBlock(network, form) for network in networks)
        self.register_buffer("teacher_fingerprint", torch.zeros(blocks))  # saved with the weights: whose student it is

    @classmethod
    def from_teacher(cls, flow: AutoregressiveFlow, *, form: StudentForm = "forward", dropout: float = 0.0) -> Self:
        """A student that starts at the teacher's weights, to be trained (§3.5). Its dropout is its own."""
        require(isinstance(flow, AutoregressiveFlow), "flow", type(flow).__name__, "AutoregressiveFlow")
        with torch.device("meta"):  # no weights to draw: the teacher's are copied
            student = cls(flow.tokens, flow.channels, form=form, **{**flow.options, "dropout": dropout})
        for block, teacher in zip(student.blocks, flow.blocks, strict=True):
            copied = {name: weight.detach().clone() for name, weight in teacher.state_dict().items()}
            block.network.load_state_dict(copied, assign=True)
        student.teacher_fingerprint = fingerprint(flow).to(next(flow.parameters()).device)
        return student

    def path(self, z: Tensor, labels: Tensor | None = None, training: TrainingPass | None = None) -> list[Tensor]:
        """The student's Z^{n-1}, ..., Z^0, each (B,N,D), from z = Z^n (B,N,D) through its own levels   (Alg. 2)."""
        levels = []
        for block in reversed(self.blocks):
            z = block(z, labels, training)
            levels.append(z)
        return levels

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents z (B,N,D) to approximately `flow.inverse(z)` (B,N,D)."""
        return self.path(z, labels)[-1]


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
