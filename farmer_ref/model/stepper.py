"""A causal transformer run position by position: a cache, and CUDA graphs on a GPU.

Decoding runs dozens of small kernels per token, and launching them takes longer than running them. On a GPU, one step
of the transformer is therefore recorded as a CUDA graph, in memory of fixed shape, and replayed. Elsewhere the cache
grows with the positions.

Legend: B batch, T positions, W width, d width of an attention head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from farmer_ref.model.transformer import Transformer

Step = Callable[[Tensor], Tensor]
"""Inputs (B,T,W) at the next T positions to the transformer's outputs there (B,T,W)."""


def stepper(transformer: Transformer, capacity: int, *, like: Tensor, fixed: bool | None = None) -> Step:
    """A function of the next positions' inputs that remembers all earlier ones, up to `capacity` positions in all.

    `like` gives batch size, dtype and device. `fixed` chooses the fixed-shape path, on a GPU as a CUDA graph; by
    default it is used on a GPU only, and tests compare the two. An output is valid until the next call.
    """
    if like.is_cuda if fixed is None else fixed:
        return FixedStepper(transformer, capacity, like)
    cache = transformer.new_cache(capacity)
    return lambda x: transformer(x, cache)


class FixedCache:
    """One layer's keys and values in memory of one shape, addressed by a *tensor*: every step runs the same kernels."""

    position: Tensor  # (T,), where the current step's keys and values go
    visible: Tensor  # (T,capacity), what each of these positions may attend to

    def __init__(self, batch: int, heads: int, capacity: int, head_dim: int, *, like: Tensor, dtype: torch.dtype):
        # Zeros rather than `empty`: hidden values are multiplied by 0, and 0 times a stray NaN is NaN.
        self.keys, self.values = (like.new_zeros(batch, heads, capacity, head_dim, dtype=dtype) for _ in range(2))

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store at `position`; returns the whole memory, and the mask that hides what lies after each position."""
        self.keys.index_copy_(2, self.position, keys)
        self.values.index_copy_(2, self.position, values)
        return self.keys, self.values, self.visible


class FixedStepper:
    """The fixed-shape `Step`: single positions replay a CUDA graph (on a CPU, they run the very same step)."""

    def __init__(self, transformer: Transformer, capacity: int, like: Tensor):
        kind = like.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
        self.transformer, self.length = transformer, 0
        self._cache = [
            FixedCache(like.shape[0], layer.heads, capacity, layer.head_dim, like=like, dtype=dtype)
            for layer in transformer.layers
        ]
        self._places = torch.arange(capacity, device=like.device)
        self._here = torch.zeros(1, dtype=torch.long, device=like.device)
        self._replay: Callable[[], object] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs (B,T,W) at the next T positions to outputs (B,T,W); with T = 1 the replayed step."""
        begin, self.length = self.length, self.length + x.shape[1]
        if x.shape[1] > 1:  # the condition tokens, once
            return self._run(x, torch.arange(begin, self.length, device=x.device))
        if self._replay is None:
            self._input = x.clone()
            self._output = torch.empty_like(self._run(x, self._here.fill_(begin)))
            self._replay = record(lambda: self._output.copy_(self._run(self._input, self._here)), x.device)
        self._input.copy_(x)
        self._here.fill_(begin)
        self._replay()
        return self._output

    def _run(self, x: Tensor, positions: Tensor) -> Tensor:
        visible = self._places <= positions[:, None]
        for layer in self._cache:
            layer.position, layer.visible = positions, visible
        return self.transformer(x, self._cache)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which steps are recorded: not the default one, and always the same, as each takes memory."""
    return torch.cuda.Stream(device)


def record(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`step` as a CUDA graph: the same kernels on the same memory, launched at once. Off CUDA, `step` itself.

    `step` must read and write tensors that stay where they are. It runs twice before it is recorded, so the caller
    sets its state afterwards.
    """
    if device.type != "cuda":
        return step
    with torch.cuda.device(device):
        aside, graph = _side_stream(device), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and allocate their workspaces now
                step()
        torch.cuda.current_stream().wait_stream(aside)
        # thread_local: another thread may use the GPU meanwhile, to pin a data loader's batches, say.
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            step()

    def replay(memory: object = step) -> None:  # a graph knows only addresses: `memory` keeps alive what lies there
        graph.replay()

    return replay
