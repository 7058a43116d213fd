"""Linear layers that use all of the processor: by oneDNN where PyTorch's matrix products do not.

PyTorch multiplies matrices by Intel's MKL, which does not use AVX-512 on AMD processors. oneDNN, which PyTorch includes
for convolutions, does: it is twice as fast on a processor that computes 512 bits at once. The results agree up
to rounding.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farmer_ref.support.record import processor_fields

LEAST_ROWS = 128  # fewer rows gain less than the call costs
ZEN_5 = 26  # AMD's number of a family of processors


@functools.cache
def has_onednn() -> bool:
    """Whether the operations exist that PyTorch's own compiler uses for a layer with constant weights."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b by oneDNN, without a gradient; W as it is, or in oneDNN's own order."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@functools.cache
def least_weights() -> float:
    """The number of weights from which a layer trains faster by oneDNN: 0 on AMD's Zen 5, infinity where none does.

    Zen 5 computes 512 bits at once; Zen 4 takes two turns, and gains enough only where there is much to compute.
    """
    fields = processor_fields()
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if not (fields.get("vendor_id") == "AuthenticAMD" and wide and has_onednn()):
        return math.inf
    return 0 if int(fields["cpu family"]) >= ZEN_5 else 1 << 16


class Product(torch.autograd.Function):
    """x W^T + b of x (n,i), W (o,i) and b (o,) or None, in float32 on a CPU, by oneDNN."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(n,o)."""
        return onednn_product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        """Keep what the backward pass needs."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of the loss for x, W and b: products again, so that they can be differentiated once more."""
        (x, weight), (x_wanted, weight_wanted, bias_wanted) = ctx.saved_tensors, ctx.needs_input_grad
        product = Product.apply if torch.is_grad_enabled() else Product.forward
        to_x = product(gradient, weight.T, None) if x_wanted else None
        to_weight = None
        if weight_wanted and len(weight) > weight.shape[1]:  # oneDNN is faster with the shorter side first
            to_weight = product(x.T, gradient.T, None).T
        elif weight_wanted:
            to_weight = product(gradient.T, x.T, None)
        return to_x, to_weight, gradient.sum(0) if bias_wanted else None


class Linear(nn.Linear):
    """`nn.Linear`, its product computed by `Product` where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """x (...,i) to (...,o)."""
        if (
            not torch.compiler.is_compiling()  # first: a program that is exported is for any number of rows
            and self.weight.numel() >= least_weights()
            and type(x) is Tensor  # operations of tensors without memory, say, are counted
            and x.dtype == self.weight.dtype == torch.float32
            and x.device.type == "cpu"
            and x.numel() >= LEAST_ROWS * self.in_features
            and not torch.is_autocast_enabled("cpu")
            and not torch._C._are_functorch_transforms_active()  # of torch.func, which need rules that Product lacks
        ):
            return Product.apply(x.flatten(0, -2), self.weight, self.bias).view(*x.shape[:-1], -1)
        return F.linear(x, self.weight, self.bias)
