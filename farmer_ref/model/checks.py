"""Checks of what would end in a wrong number or a traceback: images, labels, the weights of a draw, modes that are on.

Legend: B batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from farmer_ref.model.config import NULL_LABEL
from farmer_ref.support.errors import InputError, require_finite, shown

FARTHEST = 100.0  # images without a negative pixel that reach so far are grey levels
NOT_FINITE = (
    "the model's mixture weights are not finite; allowed: weights, guidance and temperatures whose products "
    "fit into the model's precision"
)


def checked_images(images: Tensor) -> Tensor:
    """Images as given. Raises `InputError` for grey levels in place of images in [-1, 1], the usual mistake."""
    if not torch.is_tensor(images):
        raise InputError(f"images are a {type(images).__name__}; allowed: a tensor of numbers in [-1, 1]")
    if images.is_floating_point() and images.numel() and not torch.compiler.is_exporting():
        smallest, largest = (float(end) for end in images.detach().aminmax())
        whole = largest >= 2 and bool((images == images.round()).all())
        if whole or (smallest >= 0 and largest > FARTHEST):  # an untrained flow's images reach as far, on both sides
            raise InputError(f"images reach {largest:g}; allowed: numbers in [-1, 1], as model.dequantiser gives")
        require_finite("images", images, "numbers in [-1, 1]")
    return images


def check_grey_levels(name: str, values: Tensor, levels: int) -> None:
    """Raise `InputError` for what are not whole grey levels from 0 to `levels` - 1: images in [-1, 1], say."""
    whole = not values.is_floating_point() and values.dtype != torch.bool
    numbers = values.byte() if values.dtype == torch.bool else values
    # As tensors, bytes would be compared with 256 as a byte.
    least, most = (float(end) for end in numbers.aminmax()) if values.numel() else (0.0, 0.0)
    if not whole or least < 0 or most >= levels:
        given, allowed = f"{values.dtype} from {least:g} to {most:g}", f"whole grey levels from 0 to {levels - 1}"
        raise InputError(f"{name} are {given}; allowed: {allowed}, as model.dequantiser.quantise gives")


def checked_labels(
    labels: Tensor | Sequence[int] | None, count: int | None, *, classes: int, device: torch.device
) -> Tensor | None:
    """Labels as whole numbers (B,), one for each of `count` images; on `device`, wherever they were."""
    if labels is None:
        return None
    try:
        given = torch.as_tensor(labels, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels are {shown(labels)} ({error}); allowed: whole numbers (B,)") from None
    whole = given.dtype != torch.bool and not given.dtype.is_floating_point
    if given.dim() != 1 or not (whole or not given.numel()):
        kind = f"{given.dtype} {tuple(given.shape)}"
        raise InputError(f"labels are {kind}; allowed: whole numbers (B,); argmax(1) makes them of one-hot rows")
    if count is not None and len(given) != count:
        raise InputError(f"{len(given)} labels; allowed: {count}, one for each image")
    numbers = given.long()
    if len(numbers):
        low, high = int(numbers.min()), int(numbers.max())
        if low < NULL_LABEL or high >= classes:
            wrong = low if low < NULL_LABEL else high
            allowed = (
                f"0 to {classes - 1}, or -1 for no label" if classes else "-1, for no label, in a model without labels"
            )
            raise InputError(f"label is {wrong}; allowed: {allowed}")
    return numbers


def draw_places(weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` places (B,count) of each row of weights (B,n), drawn with replacement in proportion to them."""
    # PyTorch checks the weights of single draws. On a GPU, those of more must be right: else nothing runs there again.
    if count > 1 and not bool(weights.isfinite().all()):
        raise InputError(NOT_FINITE)
    try:
        return torch.multinomial(weights, count, replacement=True, generator=generator)
    except RuntimeError as error:
        if "probability" not in str(error):  # PyTorch's word for weights that are not finite, or all 0
            raise
        raise InputError(NOT_FINITE) from None


@contextlib.contextmanager
def with_gradients(*tensors: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """The tensors where gradients are recorded: also for a caller under `no_grad` or `inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield tuple(None if t is None else t.clone() if t.is_inference() else t.detach() for t in tensors)


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode, without dropout, inside the `with` block; after it, the mode that each module had."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
