"""`from_tarflow` against the public TARFlow model, from its documented parameter names and shapes.

The oracle below follows the paper's formulas (arXiv 2412.06329, §3) and the names of the public state dict, in plain
loops; `benchmarks/tarflow.py` compares with a clone of the public code itself.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from farmer_ref.model.tarflow import from_tarflow
from farmer_ref.support.errors import InputError

TOKENS, CHANNELS, WIDTH, HEAD, LAYERS, BLOCKS, CLASSES = 6, 4, 24, 8, 2, 3, 5


def state_dict(conditional: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[-1])

    state = {"var": 0.5 + torch.rand(TOKENS, CHANNELS, generator=generator, dtype=torch.float64)}
    for t in range(BLOCKS):
        block = {
            "proj_in.weight": randn(WIDTH, CHANNELS),
            "proj_in.bias": randn(WIDTH),
            "pos_embed": randn(TOKENS, WIDTH),
            "proj_out.weight": 0.1 * randn(2 * CHANNELS, WIDTH),  # log sigma is unbounded
            "proj_out.bias": 0.1 * randn(2 * CHANNELS),
            "attn_mask": torch.ones(TOKENS, TOKENS, dtype=torch.float64).tril(),
        }
        if conditional:
            block["class_embed"] = randn(CLASSES, 1, WIDTH)
        for layer in range(LAYERS):
            for name, shape in {
                "attention.norm": (WIDTH,),
                "attention.qkv": (3 * WIDTH, WIDTH),
                "attention.proj": (WIDTH, WIDTH),
                "mlp.norm": (WIDTH,),
                "mlp.main.0": (4 * WIDTH, WIDTH),
                "mlp.main.2": (WIDTH, 4 * WIDTH),
            }.items():
                block[f"attn_blocks.{layer}.{name}.weight"] = randn(*shape) + (1 if len(shape) == 1 else 0)
                block[f"attn_blocks.{layer}.{name}.bias"] = randn(shape[0])
        state |= {f"blocks.{t}.{name}": value for name, value in block.items()}
    return state


def network(
    block: dict[str, torch.Tensor], x: torch.Tensor, positions: torch.Tensor, label: int | None
) -> torch.Tensor:
    """-log sigma and mu of the token after each of x (T,D), for one image."""

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        return y @ block[f"{name}.weight"].T + block[f"{name}.bias"]

    def norm(name: str, y: torch.Tensor) -> torch.Tensor:
        centred = y - y.mean(-1, keepdim=True)
        scaled = centred / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return scaled * block[f"{name}.weight"] + block[f"{name}.bias"]

    hidden = linear("proj_in", x) + positions[: len(x)]
    if "class_embed" in block:
        table = block["class_embed"][:, 0]
        hidden = hidden + (table.mean(0) if label is None or label < 0 else table[label])
    for layer in range(LAYERS):
        prefix = f"attn_blocks.{layer}."
        query, keys, values = linear(prefix + "attention.qkv", norm(prefix + "attention.norm", hidden)).split(WIDTH, -1)
        attended = torch.zeros_like(hidden)
        for head in range(WIDTH // HEAD):
            part = slice(head * HEAD, (head + 1) * HEAD)
            for i in range(len(x)):
                weights = torch.softmax(keys[: i + 1, part] @ query[i, part] / math.sqrt(HEAD), 0)
                attended[i, part] = weights @ values[: i + 1, part]
        hidden = hidden + linear(prefix + "attention.proj", attended)
        inner = F.gelu(linear(prefix + "mlp.main.0", norm(prefix + "mlp.norm", hidden)))
        hidden = hidden + linear(prefix + "mlp.main.2", inner)
    return linear("proj_out", hidden)


def oracle(state: dict[str, torch.Tensor], x: torch.Tensor, label: int | None, inverse: bool = False):
    """Latents of one image (N,D) and TARFlow's *mean* log-determinant; or the inverse, which scales by `var` first."""
    logdet = torch.zeros((), dtype=torch.float64)
    x = x * state["var"].sqrt() if inverse else x
    for t in reversed(range(BLOCKS)) if inverse else range(BLOCKS):
        block = {name.removeprefix(f"blocks.{t}."): v for name, v in state.items() if name.startswith(f"blocks.{t}.")}
        order = torch.arange(TOKENS).flip(0) if t % 2 else torch.arange(TOKENS)
        x, positions = x[order], block["pos_embed"][order]
        if inverse:
            known = [x[0]]
            for i in range(1, TOKENS):
                negative_log_scale, shift = network(block, torch.stack(known), positions, label)[-1].chunk(2)
                known.append(x[i] * negative_log_scale.exp() + shift)
            x = torch.stack(known)
        else:
            negative_log_scale, shift = network(block, x, positions, label)[:-1].chunk(2, -1)
            x = torch.cat([x[:1], (x[1:] - shift) * torch.exp(-negative_log_scale)])
            logdet = logdet - negative_log_scale.sum() / (TOKENS * CHANNELS)
        x = x[order]
    return x, logdet


@pytest.mark.parametrize("label", [None, -1, 3])
@pytest.mark.parametrize("conditional", [False, True])
def test_latents_logdet_and_inverse(conditional, label):
    state = state_dict(conditional)
    flow = from_tarflow(state, head_dim=HEAD)
    x = torch.randn(1, TOKENS, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = None if label is None else torch.tensor([label])
    z, logdet = flow(x, labels)
    wanted, mean_logdet = oracle(state, x[0], label)
    assert (z[0] - wanted).abs().max() < 1e-5
    assert abs(logdet[0] / (TOKENS * CHANNELS) - mean_logdet) < 1e-5
    back = flow.inverse(z * state["var"].sqrt(), labels)
    assert (back[0] - oracle(state, z[0].detach(), label, inverse=True)[0]).abs().max() < 1e-5


def test_volume_preserving_release_is_refused():
    state = state_dict(False)
    for t in range(BLOCKS):
        state[f"blocks.{t}.proj_out.weight"] = state[f"blocks.{t}.proj_out.weight"][:CHANNELS]
    with pytest.raises(InputError, match="volume-preserving"):
        from_tarflow(state, head_dim=HEAD)


def test_foreign_weights_are_named():
    with pytest.raises(InputError, match=r"no blocks\.0\.proj_in\.weight"):
        from_tarflow({"weight": torch.zeros(1)})
    with pytest.raises(InputError, match="head_dim is 7"):
        from_tarflow(state_dict(False), head_dim=7)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("blocks.0.proj_out.weight"),
        lambda state: state.pop("blocks.1.proj_in.bias"),
        lambda state: state.update({"blocks.0.new": torch.zeros(1)}),
        lambda state: [state.pop(name) for name in list(state) if "attn_blocks" in name],
    ],
)
def test_weights_that_do_not_fit_are_one_line(change):
    state = state_dict(conditional=False)
    change(state)
    with pytest.raises(InputError, match="state_dict does not fit .*; allowed: TARFlow's"):
        from_tarflow(state, head_dim=HEAD)
