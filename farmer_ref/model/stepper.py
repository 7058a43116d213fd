"""A causal transformer run position by position, in as few operations as it takes; on a GPU, as CUDA graphs.

Decoding runs dozens of small operations per token, and starting them takes longer than computing them. So one position
has a path of its own here: each layer's four products and what lies between them, on keys and values in memory that is
allocated once. On a GPU, that step is recorded as a CUDA graph, in memory of fixed shape, and replayed. Memory and
graphs are kept for the next batch of the same shape.

Legend: B batch, T positions, W width, d width of an attention head.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import ClassVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farmer_ref.model.linear import has_onednn, onednn_product
from farmer_ref.model.precision import without_autocast
from farmer_ref.model.transformer import GrowingCache, Transformer, TransformerLayer

Step = Callable[[Tensor], Tensor]
"""Inputs (B,T,W) at the next T positions to the transformer's outputs there (B,T,W)."""
Graphs = dict[int, Callable[[], Tensor]]
"""Recorded steps by the positions that they read."""

RECORDED_FROM = 48  # positions: a graph takes longer to record than it saves over fewer (our guess)
SMALLEST_BUCKET = 64  # positions that a recorded step reads at least; then 128, 256, ...
KEPT_MEMORIES = 4  # a full batch and the last one, each of the prior and of the flow
SHARED_FROM = 1 << 17  # weights: for fewer, waking the other threads costs more than they save
PACKED_FROM = 4  # rows: below it, putting weights in oneDNN's order gains nothing


def stepper(transformer: Transformer, capacity: int, *, like: Tensor, fixed: bool | None = None) -> Step:
    """A function of the next positions' inputs that remembers all earlier ones, up to `capacity` positions in all.

    `like` gives batch size, dtype and device. `fixed` chooses the fixed-shape path, on a GPU as CUDA graphs; by default
    it is used on a GPU only, and not for few positions; tests compare the two. There is no dropout. An output is valid
    until the next call.
    """
    if fixed is None:
        fixed = like.is_cuda and capacity >= RECORDED_FROM
    return (FixedStepper if fixed else GrowingStepper)(transformer, capacity, like)


class LayerStep:
    """`TransformerLayer.forward` at one position, in two halves around the attention; x is (B,W).

    `dtype` is that of the products, as under autocast; the residual stream keeps its own.
    """

    def __init__(self, layer: TransformerLayer, *, rows: int, dtype: torch.dtype):
        self.heads, self.head_dim = layer.heads, layer.head_dim
        self.attention_norm, self.mlp_norm = _norm(layer.attention_norm), _norm(layer.mlp_norm)
        self.attention_in, self.attention_out, self.mlp_in, self.mlp_out = (
            _linear(linear, rows=rows, dtype=dtype)
            for linear in (layer.attention_in, layer.attention_out, layer.mlp_in, layer.mlp_out)
        )

    def before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B,heads,1,d), and keys and values (2,B,heads,1,d)."""
        made = self.attention_in(self.attention_norm(x)).view(x.shape[0], 3, self.heads, 1, self.head_dim)
        return made[:, 0], made[:, 1:].transpose(0, 1)

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output (B,W), given what attention made of x (B,heads,1,d)."""
        x = x + self.attention_out(attended.flatten(1))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


def _norm(norm: nn.LayerNorm) -> Step:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _linear(linear: nn.Linear, *, rows: int, dtype: torch.dtype) -> Step:
    """The layer with its weights in `dtype`; on a CPU in oneDNN's own order: twice the speed from some rows on.

    For fewer rows, a matrix that is not taller than wide is read faster by columns. A single row is multiplied by one
    thread, however large the matrix: so each thread gets a matrix of its own, with its share of the outputs.
    """
    weight, bias = linear.weight.detach().to(dtype), linear.bias.detach().to(dtype)
    on_cpu = weight.device.type == "cpu" and dtype == torch.float32
    threads, outputs = torch.get_num_threads(), linear.out_features
    if on_cpu and rows == 1 and threads > 1 and outputs % threads == 0 and weight.numel() >= SHARED_FROM:
        shares = weight.unflatten(0, (threads, -1)).mT.contiguous()  # (threads,i,o/threads)
        biases = bias.view(threads, 1, -1)
        return lambda x: torch.baddbmm(biases, x.expand(threads, 1, -1), shares).view(1, outputs)
    if on_cpu and rows >= PACKED_FROM and has_onednn():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        return lambda x: onednn_product(x, packed, bias)
    if on_cpu and rows < PACKED_FROM and linear.in_features <= linear.out_features:
        columns = weight.t().contiguous()
        return lambda x: torch.addmm(bias, x, columns)
    return lambda x: F.linear(x.to(dtype), weight, bias)


def products_dtype(like: Tensor) -> torch.dtype:
    """The dtype of the products of layers whose inputs are `like`, under autocast or not."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


class GrowingStepper:
    """The `Step` that reads the positions so far and nothing else."""

    def __init__(self, transformer: Transformer, capacity: int, like: Tensor, *, memory: list[Tensor] | None = None):
        """`memory`: keys and values of each layer, (2,B,heads,capacity,d); by default, new."""
        self.transformer, self.capacity, self.length, dtype = transformer, capacity, 0, products_dtype(like)
        self.layers = [LayerStep(layer, rows=like.shape[0], dtype=dtype) for layer in transformer.layers]
        self.memory = memory or [
            like.new_empty(2, like.shape[0], layer.heads, capacity, layer.head_dim, dtype=dtype)
            for layer in transformer.layers
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs (B,T,W) at the next T positions to outputs (B,T,W)."""
        begin, self.length = self.length, self.length + x.shape[1]
        if x.shape[1] > 1:  # the condition tokens, once
            return self.transformer(x, [GrowingCache(self.capacity, memory, begin) for memory in self.memory])
        with without_autocast(x):  # the products' dtype is chosen already
            return self._step(x[:, 0], begin)[:, None]

    def _step(self, x: Tensor, place: int) -> Tensor:
        """x (B,W) at a place to the outputs (B,W) there."""
        for layer, memory in zip(self.layers, self.memory, strict=True):
            query, new = layer.before(x)
            memory[:, :, :, place : place + 1] = new
            keys, values = memory[:, :, :, : place + 1].unbind()
            x = layer.after(x, F.scaled_dot_product_attention(query, keys, values, attn_mask=None, is_causal=False))
        return x


class FixedStepper(GrowingStepper):
    """The `Step` of fixed shapes: single positions replay a CUDA graph (on a CPU, they run the very same step)."""

    def __init__(self, transformer: Transformer, capacity: int, like: Tensor):
        self._fixed = FixedMemory.taken(transformer, capacity, like)
        super().__init__(transformer, capacity, like, memory=self._fixed.layers)
        self._graphs = self._fixed.graphs_of(transformer)
        weakref.finalize(self, self._fixed.give_back)

    def _step(self, x: Tensor, place: int) -> Tensor:
        self._fixed.input.copy_(x)
        self._fixed.here.fill_(place)
        bucket = bucket_of(place + 1, len(self._fixed.places))
        if bucket not in self._graphs:
            self._graphs[bucket] = self._fixed.recorded(self.layers, bucket)
        return self._graphs[bucket]()


def bucket_of(length: int, capacity: int) -> int:
    """The positions that a recorded step reads where there are `length`: 64, 128, 256, ..., or all."""
    return min(max(SMALLEST_BUCKET, 1 << (length - 1).bit_length()), capacity)


class FixedMemory:
    """What recorded steps of one shape read and write, at addresses that stay, with the graphs that know them.

    One user at a time takes it and gives it back: blocks of one shape use the same memory in turn.
    """

    _free: ClassVar[list[FixedMemory]] = []

    def __init__(self, shapes: list[tuple[int, ...]], *, like: Tensor, dtype: torch.dtype):
        _, batch, heads, capacity, head_dim = shapes[0]
        options = {"device": like.device, "dtype": dtype}
        with torch.inference_mode(False):  # else it could be used under inference mode only
            self.layers = [torch.zeros(shape, **options) for shape in shapes]
            self.input = torch.zeros(batch, heads * head_dim, device=like.device, dtype=like.dtype)
            self.here = torch.zeros(1, device=like.device, dtype=torch.long)
            self.places = torch.arange(capacity, device=like.device)
        self._graphs: WeakKeyDictionary[Transformer, tuple[list[tuple[int, int]], Graphs]] = WeakKeyDictionary()

    @classmethod
    def taken(cls, transformer: Transformer, capacity: int, like: Tensor) -> FixedMemory:
        """Memory for at least `capacity` positions, all zeros: kept from before, or new."""
        rounded = -(-capacity // SMALLEST_BUCKET) * SMALLEST_BUCKET  # kernels with a bias want round numbers
        shapes = [(2, like.shape[0], layer.heads, rounded, layer.head_dim) for layer in transformer.layers]
        dtype = products_dtype(like)
        for number, memory in enumerate(cls._free):
            same = memory.input.dtype == like.dtype and memory.input.device == like.device
            if same and memory.layers[0].dtype == dtype and [layer.shape for layer in memory.layers] == shapes:
                for layer in memory.layers:  # hidden values are multiplied by 0, and 0 times a stray NaN is NaN
                    layer.zero_()
                return cls._free.pop(number)
        return cls(shapes, like=like, dtype=dtype)

    def give_back(self) -> None:
        """Keep it for the next batch. What nobody has used for longest is freed."""
        self._free.append(self)
        self.forget(KEPT_MEMORIES)

    @classmethod
    def forget(cls, keep: int = 0) -> None:
        """Free all but the last few: before training goes on, which needs the memory."""
        surplus = max(0, len(cls._free) - keep)
        for memory in cls._free[:surplus]:
            memory._graphs.clear()  # they point back to it
        del cls._free[:surplus]

    def graphs_of(self, transformer: Transformer) -> Graphs:
        """The graphs of a transformer's steps by their bucket; none if its weights have changed or moved since.

        Nor if products are now rounded otherwise: a graph replays the kernels that were chosen for it.
        """
        weights = [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in transformer.parameters()]
        recorded_for = (torch.backends.cuda.matmul.fp32_precision, weights)
        if self._graphs.get(transformer, (None,))[0] != recorded_for:
            self._graphs[transformer] = (recorded_for, {})
        return self._graphs[transformer][1]

    def recorded(self, layers: list[LayerStep], bucket: int) -> Callable[[], Tensor]:
        """A function without arguments that takes the step at `here` from `input` (B,W), and returns its output."""
        found = self._run(layers, bucket)
        with torch.inference_mode(False):
            output = torch.empty_like(found)
        replay = record(lambda: output.copy_(self._run(layers, bucket)), self.input.device)

        def step() -> Tensor:
            replay()
            return output

        return step

    def _run(self, layers: list[LayerStep], bucket: int) -> Tensor:
        x = self.input
        # What lies after the present position is hidden, by one bias for all layers.
        bias = torch.zeros(bucket, device=x.device, dtype=self.layers[0].dtype)
        bias = bias.masked_fill(self.places[:bucket] > self.here, -torch.inf).expand(x.shape[0], 1, 1, bucket)
        for layer, memory in zip(layers, self.layers, strict=True):
            query, new = layer.before(x)
            memory.index_copy_(3, self.here, new)
            keys, values = memory[:, :, :, :bucket].unbind()
            x = layer.after(x, F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, is_causal=False))
        return x


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which steps are recorded: not the default one, and always the same, as each takes memory."""
    return torch.cuda.Stream(device)


class GraphPool:
    """The memory that a device's graphs share: nothing in it outlives a step, whose output is copied out of it.

    Each graph holds it, and it goes with the last of them: PyTorch may refuse a pool that has lost all its graphs.
    """

    _alive: ClassVar[WeakValueDictionary[torch.device, GraphPool]] = WeakValueDictionary()

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()

    @classmethod
    def of(cls, device: torch.device) -> GraphPool:
        """The pool of the graphs that there are, or a new one."""
        pool = cls._alive.get(device) or cls()
        cls._alive[device] = pool
        return pool


def record(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`step` as a CUDA graph: the same kernels on the same memory, launched at once. Off CUDA, `step` itself.

    `step` must read and write tensors that stay where they are. It runs twice before it is recorded, and must change
    nothing by running again.
    """
    if device.type != "cuda":
        return step
    with torch.cuda.device(device):
        aside, pool, graph = _side_stream(device), GraphPool.of(device), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and allocate their workspaces now
                step()
        torch.cuda.current_stream().wait_stream(aside)
        # thread_local: another thread may use the GPU meanwhile, to pin a data loader's batches, say.
        with torch.cuda.graph(graph, pool=pool.handle, stream=aside, capture_error_mode="thread_local"):
            step()

    def replay(memory: object = (step, pool)) -> None:  # a graph knows only addresses: this keeps what lies there
        graph.replay()

    return replay
