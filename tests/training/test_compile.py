"""What `--compile` compiles is compiled once, whatever part of a step's batch it then works on, and goes with it."""

import dataclasses
import weakref
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from conftest import small_model
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from benchmarks import scaling
from farmer_ref import PRESETS, Farmer
from farmer_ref.model.transformer import TrainingPass, TransformerLayer, transformer_layers
from farmer_ref.training.trainer import MovingAverage, Trainer


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


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are compiled from now on, which is quick: they run as they are."""
    torch._dynamo.reset()
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(TransformerLayer, "compile", lambda layer: nn.Module.compile(layer, backend=backend))
    yield compiled
    torch._dynamo.reset()


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@torch._dynamo.config.patch(optimize_ddp=True)
def test_layers_stay_whole_under_ddp(tmp_path, graphs, alone):
    """PyTorch would cut a graph where 1 MiB of gradients is complete: in the MLP of a layer of width 256."""
    shape = dataclasses.replace(PRESETS["tiny"].model, flow_width=256, prior_width=256)
    config = dataclasses.replace(PRESETS["tiny"], model=shape, compile=True)
    model = Farmer(shape)
    distributed_model = DistributedDataParallel(model)
    average = MovingAverage(model, lambda: Farmer(shape), decay=0.9)
    waiting = {"export": None, "loss": None, "batches": None, "events": [], "tokens": shape.tokens}
    Trainer(config, tmp_path, model=distributed_model, average=average, **waiting)
    distributed_model(torch.zeros(2, 1, 8, 8)).total.sum().backward()
    assert len(graphs) == 2  # of the layers of flow and prior, which read 16 and 17 positions


def test_a_benchmark_holds_the_layers_of_one_model_at_a_time(monkeypatch, graphs):
    """Else memory was measured with those before, GiB of the paper's: a compiled layer and its call are a cycle."""
    weights, alive = [], []

    def new(config):
        alive.append(any(weight() is not None for weight in weights))
        model = Farmer(config)
        weights.append(weakref.ref(transformer_layers(model)[0].mlp_in.weight))
        return model

    monkeypatch.setattr(scaling, "Farmer", new)
    rows = scaling.sweep(scaling.ScalingBenchmark(preset="tiny", batches=(2,), steps=1, device="cpu"))
    assert len(weights) == sum(map(len, rows.values())) == 4
    assert not any(alive)
