"""How much of a GPU's peak a training step can reach, from a count of what it does.

The model FLOP utilisation (MFU) compares the model's products with the bfloat16 peak. This code also has products that
are not bfloat16, attention, and traffic to memory between products. A step is run on fake tensors (shapes without
memory), every operation is counted, and each kind of work is divided by the rate of an H100's data sheet, times the
share of it that good kernels reach (our guess). Waiting for data, for other GPUs or for Python is not counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from farmer_ref.model.config import ModelConfig
from farmer_ref.model.farmer import Farmer
from farmer_ref.model.precision import rounded_products
from farmer_ref.model.transformer import TrainingPass
from farmer_ref.training.costs import peak_flops_of, training_flops

RATES = {  # of an H100 SXM, dense: FLOPs and bytes a second
    "bfloat16": 989e12,
    "tf32": 495e12,
    "float32": 67e12,
    "float64": 67e12,
    "attention": 989e12,
    "memory": 3.35e12,
}
REACHED = Counter(dict.fromkeys(RATES, 0.7)) | {"attention": 0.35, "memory": 0.8}  # shares of these; our guess
OPTIMISER_BYTES = 36  # a weight's: it, its gradient, two moments and its average are read, all but the gradient written
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


class Counted(TorchDispatchMode):
    """Counts operations: FLOPs of products by their precision and of attention; bytes that all others move ("memory"),
    and those that they would move if everything between two products were one operation ("fused")."""

    def __init__(self) -> None:
        super().__init__()
        self.work: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count it."""
        result = func(*args, **(kwargs or {}))
        name, given = func._overloadpacket.__name__, [a for a in args if isinstance(a, Tensor)]
        made = [a for a in (result if isinstance(result, tuple | list) else [result]) if isinstance(a, Tensor)]
        moved = sum(min(a.nbytes, a.untyped_storage().nbytes()) for a in [*given, *made])
        if name in PRODUCTS:
            exact = torch.get_float32_matmul_precision() == "highest"
            kind = {torch.bfloat16: "bfloat16", torch.float64: "float64"}.get(made[0].dtype)
            kind = kind or ("float32" if exact else "tf32")
            self.work[kind] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
            self.work["fused"] += moved
        elif name.startswith("_scaled_dot_product"):
            backward = name.endswith("_backward")
            batch, heads, length, head_dim = given[1 if backward else 0].shape
            causal = any(value is True for value in [*args, *(kwargs or {}).values()])
            flops = 4 * batch * heads * length**2 * head_dim * (2.5 if backward else 1)
            self.work["attention"] += flops / (2 if causal else 1)  # a causal kernel leaves out what is masked
            self.work["fused"] += moved
        elif func._schema.is_mutable or not {a.untyped_storage()._cdata for a in made} <= {
            a.untyped_storage()._cdata for a in given
        }:  # not a mere view
            self.work["memory"] += moved
        return result


def work_of_an_image(config: ModelConfig, *, precision: str, compiled: bool) -> Counter[str]:
    """FLOPs by kind, and bytes ("memory"), that one more image adds to a training step.

    Counted with few blocks and layers and extrapolated linearly. In compiled layers, what lies between two products
    counts as one operation.
    """
    basis = "dct" if config.patch_basis == "pca" else config.patch_basis  # the same cost, and nothing to fit
    small = dataclasses.replace(
        config, flow_blocks=1, flow_layers=1, prior_layers=1, patch_basis=basis, pixels="linear"
    )

    def counted(**changes: int) -> Counter[str]:
        one, two = (_counted(dataclasses.replace(small, **changes), n, precision) for n in (3, 4))
        return Counter({kind: two[kind] - one[kind] for kind in two})

    base, total = counted(), Counter()
    with_block, with_layer, with_prior = counted(flow_blocks=2), counted(flow_layers=2), counted(prior_layers=2)
    layers = config.flow_blocks * config.flow_layers
    for kind in base | with_block | with_layer | with_prior:
        block, layer, prior = (more[kind] - base[kind] for more in (with_block, with_layer, with_prior))
        total[kind] = base[kind] - layer - prior - (block - layer)
        total[kind] += config.flow_blocks * (block - layer) + layers * layer + config.prior_layers * prior
    if compiled:
        for more, count in ((with_layer, layers), (with_prior, config.prior_layers)):
            total["memory"] -= count * (more["memory"] - base["memory"] - more["fused"] + base["fused"])
    del total["fused"]
    return total


def _counted(config: ModelConfig, images: int, precision: str) -> Counter[str]:
    products = rounded_products() if precision != "float32" else contextlib.nullcontext()
    with FakeTensorMode(), torch.random.fork_rng(devices=[]), products, Counted() as counter:
        model = Farmer(config)
        pixels = torch.empty(images, config.channels, config.image_size, config.image_size)
        labels = torch.zeros(images, dtype=torch.long) if config.num_classes else None
        counter.work.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            total = model(pixels, labels, TrainingPass(torch.arange(images), images)).total
        total.sum().backward()
    return counter.work


def reachable_utilisation(
    config: ModelConfig, *, parameters: int, images: int, precision: str = "bfloat16", compiled: bool = True
) -> float:
    """The model FLOP utilisation of an H100 that computes `images` images of each step: at most, by the count."""
    work = work_of_an_image(config, precision=precision, compiled=compiled)
    work["memory"] += OPTIMISER_BYTES * parameters / images
    seconds = sum(amount / (REACHED[kind] * RATES[kind]) for kind, amount in work.items())
    return training_flops(config) / peak_flops_of("H100") / seconds
