"""What a model costs: FLOPs and memory of a training step, computed from its configuration alone.

Legend: N tokens, D channels of a token, M condition tokens, I and R its informative and redundant channels, K_I and K_R
components. A multiply-add is two FLOPs.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from farmer_ref.model.config import ModelConfig
from farmer_ref.model.farmer import Farmer
from farmer_ref.model.pretrained import least_parameters
from farmer_ref.model.transformer import TrainingPass
from farmer_ref.support.errors import InputError

PEAK_TERAFLOPS = {  # dense bfloat16, from data sheets; the first key that is a word of the device's name counts
    "GH200": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A10": 125.0,
    "L4": 121.0,
    "4090": 165.0,
    "T4": 65.0,  # of float16: it has no bfloat16
}
BYTES_PER_PARAMETER = 20  # float32: the weight, its gradient, two moments of AdamW, its moving average


def forward_flops(config: ModelConfig) -> int:
    """FLOPs of log p of one image, products only (attention, convolutions included). Backward takes twice as many."""
    tokens, channels = config.tokens, config.token_channels
    informative = config.informative or channels
    redundant = channels - informative
    square = 2 * tokens * channels**2  # a (D,D) matrix applied to all tokens

    def transformer(layers: int, width: int, length: int) -> int:
        projections = 2 * 12 * length * width**2  # 4 W^2 in attention, 8 W^2 in the MLP, for each token
        attention = 2 * 2 * length**2 * width  # queries with keys, weights with values; the mask is not deducted
        return layers * (projections + attention)

    block = transformer(config.flow_layers, config.flow_width, tokens)
    block += 2 * 3 * tokens * channels * config.flow_width  # D in, 2 D out
    if config.channel_mixing == "learned":
        block += square + 2 * 2 * channels**3  # A x, and A = P L U
    length = config.condition_repeats + tokens
    prior = transformer(config.prior_layers, config.prior_width, length)
    prior += 2 * tokens * informative * config.prior_width
    prior += 2 * tokens * config.prior_width * config.components * (1 + 2 * informative)
    if redundant and config.redundant_prior == "shared":
        prior += 2 * config.prior_width * config.redundant_components * (1 + 2 * redundant)
    basis = 0 if config.patch_basis == "pixel" else square
    width, colours = config.noise_width, config.channels
    noise = 2 * config.image_size**2 * width * (9 * 3 * colours + 9 * width + 2 * colours)
    return noise + basis + config.flow_blocks * block + prior


def training_flops(config: ModelConfig) -> int:
    """FLOPs of a training step per image: the forward pass once, the backward pass twice that.

    Recomputation under activation checkpointing is not counted, so that utilisation measures useful work.
    """
    return 3 * forward_flops(config)


def peak_flops(device: torch.device) -> float:
    """Peak FLOPs per second of this machine's GPU; 0 for a CPU, or a GPU that is not in the table."""
    return peak_flops_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else 0.0


def peak_flops_of(name: str) -> float:
    """Peak dense bfloat16 FLOPs per second of a GPU, by its name; 0 where it is not in the table."""
    return next((1e12 * peak for key, peak in PEAK_TERAFLOPS.items() if re.search(rf"\b{key}\b", name)), 0.0)


def state_bytes(parameters: int, processes: int = 1) -> int:
    """Bytes per GPU of weights, gradients, moments and averages, sharded over `processes` (FSDP)."""
    return BYTES_PER_PARAMETER * parameters // processes


def require_room(
    config: ModelConfig, device: torch.device, *, images: int, state: int = 0, backward: bool = False
) -> None:
    """Raise `InputError`, before anything is allocated, where `images` at a time cannot fit into the device's memory.

    The least that they take: `state` bytes beside them, and for each image the inputs of all layers (to go backward,
    with or without checkpoints), or the keys and values of the prior's (to sample). What passes may still be too much.
    """
    layers = config.flow_blocks * config.flow_layers * config.flow_width if backward else 0
    layers += config.prior_layers * config.prior_width * (1 if backward else 2)
    needed, memory = state + 4 * images * (config.tokens * layers + config.dimensions), memory_of(device)
    if memory is not None and needed > memory:
        raise InputError(
            f"memory needed is {needed / 2**30:,.1f} GiB ({least_parameters(config):,} parameters, {images:,} images "
            f"at once); allowed: at most {memory / 2**30:,.1f} GiB, as on this {device.type}"
        )


def memory_of(device: torch.device) -> int | None:
    """The memory in bytes of a GPU or of this machine; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def saved_bytes(config: ModelConfig, *, checkpoint_activations: bool = False, precision: str = "bfloat16") -> int:
    """Bytes that one more image of a step adds to the activations saved for backward.

    The forward pass runs on fake tensors (shapes without memory) with one and two blocks and layers, on three and four
    images (from there on, the shared mixture of a large model is computed in chunks), and is extrapolated linearly.
    """

    def kept(blocks: int, layers: int) -> int:
        basis = "dct" if config.patch_basis == "pca" else config.patch_basis  # the same cost, and nothing to fit
        small = dataclasses.replace(config, flow_blocks=blocks, prior_layers=layers, patch_basis=basis)
        four, three = (
            _kept(small, images, checkpoint_activations=checkpoint_activations, precision=precision)
            for images in (4, 3)
        )
        return four - three

    base = kept(1, 1)
    more_blocks, more_layers = config.flow_blocks - 1, config.prior_layers - 1
    return base + more_blocks * (kept(2, 1) - base) + more_layers * (kept(1, 2) - base)


def _kept(config: ModelConfig, images: int, *, checkpoint_activations: bool, precision: str) -> int:
    """Bytes saved for backward by a forward pass over `images` images, each storage counted once."""
    pieces: dict[Any, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        pieces[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        model = Farmer(config)
        training = TrainingPass(torch.arange(images), images, recompute=checkpoint_activations)
        pixels = torch.empty(images, config.channels, config.image_size, config.image_size)
        labels = torch.zeros(images, dtype=torch.long) if config.num_classes else None
        with (
            torch.enable_grad(),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            kept_alive = model(pixels, labels, training)  # so that no address is reused
    assert kept_alive is not None
    return sum(pieces.values())
