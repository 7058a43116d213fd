"""The one exception for input that a user can correct, and the one check that numbers are finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class InputError(Exception):
    """Bad input, reported in one line: the argument's name, what was given, what is allowed.

    The commands print the line and exit with code 2. It is not a `ValueError`, because the command-line library catches
    those and prints a box of its own.
    """


def require(condition: bool, name: str, given: object, allowed: str) -> None:
    """Raise `InputError`, in the form that all our messages have, unless `condition` holds."""
    if not condition:
        raise InputError(f"{name} is {shown(given)}; allowed: {allowed}")


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor with values that are not finite, and how many, in words; None where all are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool((finite := tensor.detach().isfinite()).all()):
            return f"{int((~finite).sum())} of {tensor.numel()} values of {name} are not finite"
    return None


def require_finite(name: str, tensor: Tensor, allowed: str) -> None:
    """Raise `InputError` unless all values of a tensor are finite: no figure or picture is made of others."""
    if found := not_finite({name: tensor}):
        raise InputError(f"{found}; allowed: {allowed}")


def shown(value: object, most: int = 200) -> str:
    """A value as Python writes it, in one line of at most `most` characters."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= most else f"{text[: most - 3]}..."
