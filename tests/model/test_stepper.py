"""Steps of fixed shape, which a GPU records, against the cache that grows."""

import pytest
import torch
from conftest import SPLITS, VARIANTS, mild_flow, small_model
from conftest import some_tokens as tokens

from farmer_ref.model.stepper import stepper


@pytest.mark.parametrize("variant", VARIANTS)
def test_fixed_shapes_change_nothing(variant, fixed_steps):
    """The step that a GPU records, against the cache that grows."""
    flow = mild_flow(**variant)
    labels = torch.tensor([0, 3, -1]) if "num_classes" in variant else None
    z, _ = flow(tokens(count=12), labels)
    growing = flow.inverse(z, labels)
    fixed_steps()
    assert torch.allclose(flow.inverse(z, labels), growing, atol=1e-12)


@pytest.mark.parametrize("variant", SPLITS)
def test_steps_of_fixed_shape_give_the_same_outputs(variant):
    """The step that a GPU records, against the cache that grows: the condition tokens at once, then one by one."""
    prior = small_model(**variant).prior
    inputs = torch.randn(4, 11, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # (B,M+N,W)
    whole = prior.transformer(inputs)
    for fixed in (False, True):
        step = stepper(prior.transformer, 11, like=inputs, fixed=fixed)
        parts = [step(part).clone() for part in inputs.split([2, *[1] * 9], 1)]
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-12)


def test_fixed_steps_under_autocast(fixed_steps):
    prior, labels = small_model().prior.float(), torch.tensor([0, 2, -1])
    drawn = []
    for switch in (lambda: None, fixed_steps):
        switch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            drawn.append(prior.sample(labels, generator=torch.Generator().manual_seed(0)))
    assert drawn[0].dtype == drawn[1].dtype == torch.float32
    assert torch.allclose(*drawn, atol=0.1)
