"""Flows of natural images without a download: random crops of scikit-learn's two photographs.

`benchmarks.inverses` inverts these flows. They are trained as TARFlow trains its own (prior N(0, I), noise of .05), so
that z ~ N(0, I) is the input that a sampler would give to the inverse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import trange

from farmer_ref.model.flow import AutoregressiveFlow
from farmer_ref.model.student import Distillation, OneStepStudent, teacher_path
from farmer_ref.model.tokens import Patchify
from farmer_ref.support.files import load_weights, replace_file, write_weights
from farmer_ref.support.record import ROOT

PATCH_SIZE, CHANNELS, NOISE = 4, 48, 0.05
BLOCKS, LAYERS, WIDTH, MAX_LOG_SCALE = 4, 2, 256, 4.0
TOKENS_PER_STEP, LEARNING_RATE, WARMUP = 2048, 1e-3, 50


def photographs() -> list[Tensor]:
    """Both photographs (3,H,W) in [-1, 1]."""
    from sklearn.datasets import load_sample_images

    return [torch.from_numpy(image.copy()).permute(2, 0, 1) / 127.5 - 1 for image in load_sample_images().images]


def crops(images: list[Tensor], *, batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Random crops (batch,3,side,side), mirrored at random, with Gaussian noise of standard deviation `NOISE`."""
    drawn = []
    for number in torch.randint(len(images), (batch,), generator=generator).tolist():
        height, width = images[number].shape[1:]
        top = int(torch.randint(height - side + 1, (1,), generator=generator))
        left = int(torch.randint(width - side + 1, (1,), generator=generator))
        crop = images[number][:, top : top + side, left : left + side]
        drawn.append(crop.flip(2) if torch.rand(1, generator=generator) < 0.5 else crop)
    clean = torch.stack(drawn)
    return clean + NOISE * torch.randn(clean.shape, generator=generator)


def trained_flow(tokens: int, steps: int, seed: int = 0) -> AutoregressiveFlow:
    """A flow of N tokens trained for `steps`, cached in runs/."""
    torch.manual_seed(seed)
    flow = AutoregressiveFlow(tokens, CHANNELS, blocks=BLOCKS, layers=LAYERS, width=WIDTH, max_log_scale=MAX_LOG_SCALE)

    def loss(x: Tensor) -> Tensor:
        z, logdet = flow(x)
        return 0.5 * z.square().mean() - logdet.mean() / z[0].numel() + 0.5 * math.log(2 * math.pi)

    _trained(flow, flow, loss_of=loss, name="flow", tokens=tokens, steps=steps, seed=seed)
    return flow


def trained_student(flow: AutoregressiveFlow, steps: int, seed: int = 0) -> OneStepStudent:
    """The one-step student of such a flow, trained with the paper's loss and noise (Alg. 2)."""
    flow.requires_grad_(False)
    distillation = Distillation(
        OneStepStudent.from_teacher(flow, form="inverse"), "hidden", channels=CHANNELS, width=WIDTH
    )

    def loss(x: Tensor) -> Tensor:
        levels = teacher_path(flow, x)
        noise = 0.3 * torch.rand(len(x), 1, 1) * torch.randn_like(x)
        return distillation(levels[-1] + noise, levels)

    torch.manual_seed(seed)
    student = distillation.student
    _trained(student, distillation, loss_of=loss, name="student", tokens=flow.tokens, steps=steps, seed=seed)
    assert student.taught_by(flow), "the student in runs/ was taught by another flow: delete it"
    return student


def _trained(
    kept: nn.Module,
    model: nn.Module,
    *,
    loss_of: Callable[[Tensor], Tensor],
    name: str,
    tokens: int,
    steps: int,
    seed: int,
) -> None:
    """Load the weights of `kept`, or first train `model` on crops by `loss_of(x)` and save them."""
    side = round(math.sqrt(tokens)) * PATCH_SIZE
    folder = ROOT / "runs" / f"photographs-n{tokens}-steps{steps}-seed{seed}"
    path = folder / f"{name}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        patchify, images = Patchify(side, 3, patch_size=PATCH_SIZE), photographs()
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=1e-4)
        losses = []
        for step in (bar := trange(steps, desc=f"{name}, N = {tokens}")):
            rate = min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / steps)) / 2)
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * rate
            loss = loss_of(patchify(crops(images, batch=TOKENS_PER_STEP // tokens, side=side, generator=generator)))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
        replace_file(folder / f"{name}.json", lambda at: at.write_text(json.dumps(losses)))
        write_weights(path, kept.state_dict())
    load_weights(kept, path)
    kept.eval()
