"""What `--compile` compiles is compiled once, whatever part of a step's batch it then works on."""

from collections import Counter

import pytest
import torch
from conftest import small_model
from torch._dynamo.utils import counters

from farmer_ref.model.transformer import TrainingPass, transformer_layers


def parts_of_a_step(model, *, parts, rows_of, recompute):
    """Forward and backward pass of each of `parts` parts of a batch of 2 * parts images; graphs compiled by each."""
    batch, compiled = 2 * parts, []
    images = torch.rand(batch, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for first in range(0, batch, 2):
        training = TrainingPass(rows_of(first), batch, recompute)
        model(images[first : first + 2], None, training).total.sum().backward()
        compiled.append(counters["stats"]["unique_graphs"])
    return compiled


@pytest.fixture
def compiled_model():
    torch._dynamo.reset()
    counters.clear()
    model = small_model(dropout=0.3, condition_repeats=3).train()
    for layer in transformer_layers(model):
        layer.compile(backend="aot_eager", fullgraph=True)
    yield model
    torch._dynamo.reset()


@pytest.mark.parametrize("recompute", [False, True])
def test_sixteen_parts_compile_once(compiled_model, recompute):
    """Dropout takes its masks by rows, a tensor: a number would be guarded, and each part would compile anew."""
    compiled = parts_of_a_step(
        compiled_model, parts=16, rows_of=lambda first: torch.arange(first, first + 2), recompute=recompute
    )
    assert compiled[0] > 0 and compiled == [compiled[0]] * 16
    assert not Counter(counters["graph_break"])


def test_numbers_in_place_of_a_tensor_would_be_noticed(compiled_model):
    compiled = parts_of_a_step(compiled_model, parts=4, rows_of=lambda first: slice(first, first + 2), recompute=False)
    assert compiled[-1] > compiled[0]
