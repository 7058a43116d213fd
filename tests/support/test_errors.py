"""The one check that numbers are finite."""

import pytest
import torch

from farmer_ref import InputError
from farmer_ref.support.errors import not_finite, require_finite


def test_the_first_tensor_that_is_not_finite_is_named_with_its_count():
    tensors = {"a": torch.zeros(3), "b": torch.tensor([1.0, float("nan"), float("-inf")]), "c": torch.tensor([1, 2])}
    assert not_finite(tensors) == "2 of 3 values of b are not finite"
    assert not_finite({"a": torch.zeros(0), "c": torch.tensor([True])}) is None
    with pytest.raises(InputError, match="2 of 3 values of b are not finite; allowed: others"):
        require_finite("b", tensors["b"], "others")
