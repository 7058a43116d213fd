"""Steps of fixed shape, which a GPU records, against the cache that grows."""

import contextlib
import gc
import weakref
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import SPLITS, VARIANTS, mild_flow, small_model
from conftest import some_tokens as tokens

from farmer_ref.model import stepper as module
from farmer_ref.model.precision import rounded_products
from farmer_ref.model.stepper import FixedMemory, bucket_of, stepper


@pytest.fixture
def recordings(monkeypatch):
    """The buckets of the steps that were recorded so far; few positions fill several of them."""
    monkeypatch.setattr(module, "SMALLEST_BUCKET", 4)
    FixedMemory.forget()
    recorded, buckets = FixedMemory.recorded, []
    monkeypatch.setattr(
        FixedMemory, "recorded", lambda memory, layers, b: buckets.append(b) or recorded(memory, layers, b)
    )
    yield buckets
    FixedMemory.forget()


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


def test_buckets():
    assert [bucket_of(length, 320) for length in (1, 64, 65, 128, 129, 256, 257, 320)] == [
        64, 64, 128, 128, 256, 256, 320, 320
    ]  # fmt: skip


def test_few_positions_are_not_recorded(monkeypatch):
    """On a GPU; at N = 16 a graph takes longer to record than it saves."""
    transformer, made = small_model().prior.transformer, []
    monkeypatch.setattr(module, "FixedStepper", lambda *_: made.append("fixed"))
    monkeypatch.setattr(module, "GrowingStepper", lambda *_: made.append("growing"))
    for capacity in (15, 17, 63, 255):
        stepper(transformer, capacity, like=SimpleNamespace(is_cuda=True))
    assert made == ["growing", "growing", "fixed", "fixed"]
    stepper(transformer, 255, like=SimpleNamespace(is_cuda=True), fixed=False)  # as benchmarks.inverses asks
    assert made[4:] == ["growing"]


def test_graphs_are_kept_by_block_shape_and_bucket(recordings, fixed_steps):
    """It was a graph per block and batch: 14,500 for 50,000 images of the paper's model."""
    flow = mild_flow(count=12)
    z, _ = flow(tokens(6, 12))
    exact = flow.inverse(z)
    fixed_steps()
    for batch in (6, 6, 2, 6):  # the last batch of a file is smaller
        assert torch.allclose(flow.inverse(z[:batch]), exact[:batch], atol=1e-12)
    assert recordings == [4, 8, 12] * 3 * 2  # of three blocks, two shapes
    assert len(FixedMemory._free) == 2  # blocks of one shape use the same memory in turn
    flow.blocks[0].transformer.layers[0].mlp_out.weight.data.mul_(1.0)  # in place, as a moving average does
    with torch.no_grad():
        flow.blocks[0].transformer.layers[0].mlp_in.weight.mul_(2.0)
    wanted, before = flow(tokens(6, 12)), len(recordings)
    assert torch.allclose(flow.inverse(wanted[0]), tokens(6, 12), atol=1e-9)
    assert recordings[before:] == [4, 8, 12]  # of that block alone


@pytest.mark.parametrize(("shapes", "kept"), [(1, 1), (3, 3), (4, 4), (5, 4)])
def test_the_last_four_memories_are_kept(recordings, fixed_steps, shapes, kept):
    """A full batch and the last one, each of the prior and of the flow; it was one of three."""
    flow = mild_flow(count=12)
    z, _ = flow(tokens(6, 12))
    fixed_steps()
    for batch in range(1, shapes + 1):
        flow.inverse(z[:batch])
    assert [memory.input.shape[0] for memory in FixedMemory._free] == [*range(1, shapes + 1)][-kept:]


def test_a_graph_is_not_kept_for_products_of_another_precision(recordings, fixed_steps):
    prior, labels = small_model().prior, torch.tensor([0, 1])
    fixed_steps()
    prior.sample(labels)
    before = len(recordings)
    prior.sample(labels)
    assert len(recordings) == before
    with rounded_products():
        prior.sample(labels)
    assert len(recordings) == 2 * before


def test_a_stray_nan_does_not_stay_in_kept_memory(recordings, fixed_steps):
    flow = mild_flow(count=12)
    z, _ = flow(tokens(count=12))
    exact = flow.inverse(z)
    fixed_steps()
    flow.inverse(torch.full_like(z, torch.nan))
    assert torch.allclose(flow.inverse(z), exact, atol=1e-12)


@torch.no_grad()
def test_two_steppers_at_once_do_not_share_memory(recordings):
    transformer = small_model().prior.transformer
    inputs = torch.randn(2, 3, 11, 16, dtype=torch.float64)
    steps = [stepper(transformer, 11, like=part, fixed=True) for part in inputs]
    outputs = [[], []]
    for places in inputs.split(1, 2):  # in turn, position by position
        for output, step, one in zip(outputs, steps, places, strict=True):
            output.append(step(one).clone())
    for found, part in zip(outputs, inputs, strict=True):
        assert torch.allclose(torch.cat(found, 1), transformer(part), atol=1e-12)


def test_kept_graphs_go_with_their_model(recordings, fixed_steps):
    flow = mild_flow(count=12)
    fixed_steps()
    flow.inverse(tokens(count=12))
    (memory,), gone = FixedMemory._free, weakref.ref(flow)
    assert len(memory._graphs) == 3
    del flow
    gc.collect()
    assert gone() is None and len(memory._graphs) == 0
    kept = weakref.ref(memory)
    del memory
    FixedMemory.forget()
    assert kept() is None


def test_memory_first_used_under_inference_mode_can_be_used_after_it(recordings, fixed_steps):
    flow = mild_flow(count=12)
    z, _ = flow(tokens(count=12))
    fixed_steps()
    with torch.inference_mode():
        inside = flow.inverse(z.detach().clone())
    assert torch.equal(flow.inverse(z), inside)


def test_all_graphs_share_one_pool(monkeypatch):
    """With a CUDA that is not there: each capture into a pool of its own would keep its memory to itself.

    As long as one of them is there: a pool that has lost its graphs is not taken again."""
    pools, context = [], contextlib.nullcontext()
    fake = SimpleNamespace(
        Stream=lambda device: SimpleNamespace(wait_stream=lambda other: None),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: pools.append("replay")),
        device=lambda device: context,
        stream=lambda stream: context,
        current_stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
        graph_pool_handle=object,
        graph=lambda graph, pool, stream, capture_error_mode: pools.append(pool) or context,
    )
    monkeypatch.setattr(module.torch, "cuda", fake)
    module._side_stream.cache_clear()
    ran = []

    def record():
        return module.record(lambda: ran.append(1), torch.device("cuda:0"))

    replays = [record() for _ in range(3)]
    assert len(set(pools)) == 1 and len(pools) == 3 and len(ran) == 9
    replays[0]()
    assert pools[-1] == "replay" and len(ran) == 9
    del replays[:2]
    replays.append(record())
    assert pools[-1] is pools[0]  # one of its graphs is left
    replays.clear()
    replays.append(record())
    assert pools[-1] is not pools[0]
    module._side_stream.cache_clear()


@torch.no_grad()
@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (1, 2), (2, 2), (16, 2)])
def test_a_step_in_float32_is_the_layer_s(rows, threads, monkeypatch):
    """Whether a row's products are shared by threads or not, or weights in oneDNN's order, as from some rows on."""
    shared = Mock(wraps=torch.baddbmm)
    monkeypatch.setattr(torch, "baddbmm", shared)
    monkeypatch.setattr(module, "SHARED_FROM", 16 * 3 * 16)  # all products but the one of 16 by 16
    transformer = small_model().prior.transformer.float()
    inputs = torch.randn(rows, 11, 16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        step = stepper(transformer, 11, like=inputs)
        found = torch.cat([step(part).clone() for part in inputs.split([2, *[1] * 9], 1)], 1)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(found, transformer(inputs), atol=1e-5)
    layers = len(transformer.layers) if (rows, threads) == (1, 2) else 0
    assert shared.call_count == 9 * 3 * layers
