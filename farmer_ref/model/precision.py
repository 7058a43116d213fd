"""Which numbers may be rounded: densities never, a network's layers under autocast, its other products in TF32.

TF32: the products of float32 matrices on a GPU's tensor cores, with inputs rounded to 10 bits and sums in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
EXACT = ("none", "ieee")  # the settings under which products of float32 matrices are not rounded


def float32_at_least(dtype: torch.dtype) -> torch.dtype:
    """The dtype of images, latents and densities where the weights are `dtype`: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which autocast is off: projections into and out of a transformer, and heads.

    A training step may still run their products in TF32 (`rounded_products`).
    """
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` in the precision of its input: FSDP may gather its weights in a lower one.

    A GPU's autocast does the same; a CPU's leaves them, and the operation refuses two precisions.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (...,W) normalised."""
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


@contextlib.contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """A context in which nothing is rounded below the tensor's own precision: densities, log-determinants, inverses.

    Autocast is off, and so is TF32, whatever the settings outside.
    """
    with without_autocast(tensor):
        if {backend.fp32_precision for backend in BACKENDS} <= {*EXACT}:
            yield
            return
        with _products("highest"):
            yield


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """A context in which a GPU does not round the inputs of float32 convolutions, which it does unless told not to."""
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


@contextlib.contextmanager
def rounded_products() -> Iterator[None]:
    """A context in which a GPU computes products of float32 matrices in TF32, forward and backward.

    For a training step alone: what is measured or drawn between two steps is not rounded.
    """
    with _products("high"):
        yield


@contextlib.contextmanager
def _products(precision: str) -> Iterator[None]:
    """A context in which products of float32 matrices have a precision; after it, what was set for each backend."""
    before = [backend.fp32_precision for backend in BACKENDS]
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("medium" if "bf16" in before else "high" if "tf32" in before else "highest")
        for backend, setting in zip(BACKENDS, before, strict=True):  # a user may have set one of them alone
            backend.fp32_precision = setting
