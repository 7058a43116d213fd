"""Flows of natural images that need no download: scikit-learn's two photographs, cropped at random.

What `benchmarks.inverses` inverts: flows trained as TARFlow trains its own (prior N(0, I), noise of .05), so that
z ~ N(0, I) is what a sampler would hand to the inverse.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import trange

from benchmarks.record import ROOT
from farmer_ref.files import load_weights, replace_file, write_weights
from farmer_ref.flow import AutoregressiveFlow
from farmer_ref.tokens import Patchify

PATCH_SIZE, CHANNELS, NOISE = 4, 48, 0.05
BLOCKS, LAYERS, WIDTH, MAX_LOG_SCALE = 4, 2, 256, 4.0
TOKENS_PER_STEP, LEARNING_RATE, WARMUP = 2048, 1e-3, 50


def photographs(held_out: bool = False) -> list[Tensor]:
    """Both photographs (3,H,W) in [-1, 1], without their right quarter; or that quarter alone."""
    from sklearn.datasets import load_sample_images

    images = [
        torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1 for image in load_sample_images().images
    ]
    borders = [3 * image.shape[2] // 4 for image in images]
    return [
        image[:, :, border:] if held_out else image[:, :, :border]
        for image, border in zip(images, borders, strict=True)
    ]


def crops(images: list[Tensor], batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Random crops (batch,3,side,side), mirrored at random, with Gaussian noise of `NOISE`."""
    drawn = []
    for number in torch.randint(len(images), (batch,), generator=generator).tolist():
        height, width = images[number].shape[1:]
        top = int(torch.randint(height - side + 1, (1,), generator=generator))
        left = int(torch.randint(width - side + 1, (1,), generator=generator))
        crop = images[number][:, top : top + side, left : left + side]
        drawn.append(crop.flip(2) if torch.rand(1, generator=generator) < 0.5 else crop)
    clean = torch.stack(drawn)
    return clean + NOISE * torch.randn(clean.shape, generator=generator)


def trained_flow(tokens: int, steps: int, seed: int = 0) -> tuple[AutoregressiveFlow, Path]:
    """A flow of N tokens trained for `steps`, kept in runs/ for the next time; and its folder."""
    side = round(math.sqrt(tokens)) * PATCH_SIZE
    folder = ROOT / "runs" / f"photographs-n{tokens}-steps{steps}-seed{seed}"
    torch.manual_seed(seed)
    flow = AutoregressiveFlow(tokens, CHANNELS, BLOCKS, LAYERS, WIDTH, max_log_scale=MAX_LOG_SCALE)
    if (folder / "flow.safetensors").exists():
        load_weights(flow, folder / "flow.safetensors")
        return flow.eval(), folder
    folder.mkdir(parents=True, exist_ok=True)
    patchify, images = Patchify(side, 3, PATCH_SIZE), photographs()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(flow.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=1e-4)
    losses = []
    for step in (bar := trange(steps, desc=f"flow, N = {tokens}")):
        rate = min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / steps)) / 2)
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * rate
        z, logdet = flow(patchify(crops(images, TOKENS_PER_STEP // tokens, side, generator)))
        loss = (0.5 * z.square().mean() - logdet.mean() / z[0].numel()) + 0.5 * math.log(2 * math.pi)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        bar.set_postfix(nats_per_dim=f"{losses[-1]:.3f}")
    replace_file(folder / "losses.json", lambda path: path.write_text(json.dumps(losses)))
    write_weights(folder / "flow.safetensors", flow.state_dict())
    return flow.eval(), folder
