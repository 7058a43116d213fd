"""Fixtures and checks that several test modules share."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from farmer_ref import Farmer, ModelConfig
from farmer_ref.model import flow as flow_module
from farmer_ref.model import prior as prior_module
from farmer_ref.model.coupling import CouplingFlow
from farmer_ref.model.flow import AutoregressiveFlow, Flow
from farmer_ref.model.stepper import stepper

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start: one thread gives the same bits each time
for name in ("c10d-NullHandler-dcp_logger", "torch.__trace"):  # hundreds of lines each
    logging.getLogger(name).propagate = False
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test asks the network

SMALL = {
    "image_size": 6,
    "channels": 2,
    "levels": 17,
    "patch_size": 2,
    "num_classes": 3,
    "flow_blocks": 3,
    "flow_layers": 1,
    "flow_width": 16,
    "prior_layers": 2,
    "prior_width": 16,
    "head_dim": 8,
    "informative": 5,
    "components": 3,
    "redundant_components": 4,
    "condition_repeats": 2,
}

VARIANTS = [{}, {"channel_mixing": True}, {"max_log_scale": None}, {"num_classes": 4}]  # of a flow
SPLITS = [  # of a prior
    {},
    {"informative": None},
    {"informative_channels": "interleaved"},
    {"redundant_prior": "normal"},
    {"final_permutation": False},
    {"condition_repeats": 1},
]


def randomise_zeros(module: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    """Float64, with every zero-initialised weight randomised: a new flow is the identity, and any bug passes."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    for parameter in module.parameters():
        zero = parameter.data == 0
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std
        parameter.data = torch.where(zero, noise, parameter.data)
    return module


def images_for(model: Farmer, batch: int = 2) -> Tensor:
    """Random images (B,C,H,W) in [-1, 1] of the size that a model takes, in float64."""
    c = model.config
    generator = torch.Generator().manual_seed(3)
    return torch.rand(batch, c.channels, c.image_size, c.image_size, generator=generator, dtype=torch.float64) * 2 - 1


def dequantised(values: Tensor, levels: int) -> Tensor:
    """Grey levels (B,C,H,W) with uniform noise, as images in [-1, 1] and in float64."""
    u = torch.rand(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return 2 * (values + u) / levels - 1


def small_model(**changes: object) -> Farmer:
    """A small model in float64 with no weight at zero."""
    torch.manual_seed(0)
    return randomise_zeros(Farmer(ModelConfig(**{**SMALL, **changes})))


def small_flow(tokens: int = 5, channels: int = 3, blocks: int = 3, **changes: object) -> AutoregressiveFlow:
    """A small flow in float64 with no weight at zero."""
    torch.manual_seed(0)
    shape = {"blocks": blocks, "layers": 2, "width": 16, "head_dim": 8}
    return randomise_zeros(AutoregressiveFlow(tokens, channels, **shape, **changes))


def small_coupling(tokens: int = 5, channels: int = 3, blocks: int = 4, **changes: object) -> CouplingFlow:
    """A small coupling flow in float64 with no weight at zero."""
    torch.manual_seed(0)
    return randomise_zeros(CouplingFlow(tokens, channels, blocks=blocks, layers=2, width=16, head_dim=8, **changes))


def some_tokens(batch: int = 3, count: int = 5, channels: int = 3) -> Tensor:
    """Tokens (B,N,D) in float64, the same each time."""
    return torch.randn(batch, count, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def mild_flow(dtype: torch.dtype = torch.float64, count: int = 12, **changes: object) -> AutoregressiveFlow:
    """A flow that moves tokens by about their own size, as a trained one does; a random one can be chaotic."""
    flow = small_flow(count, **changes)
    for block in flow.blocks:
        block.project_out.weight.data *= 0.3
    return flow.to(dtype)


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d function(x) / dx of one example, flattened to a matrix."""
    return torch.autograd.functional.jacobian(lambda flat: function(flat.view_as(x)).flatten(), x.flatten())


def round_trip_error(flow: Flow, x: Tensor) -> float:
    """The largest difference between x and its image through the flow and back."""
    return float((flow.inverse(flow(x)[0]) - x).abs().max())


def logdet_error(flow: Flow, x: Tensor) -> float:
    """The largest difference between the flow's log-determinant and that of autograd's Jacobian."""
    exact = torch.stack([torch.linalg.slogdet(jacobian(lambda y: flow(y)[0], one[None])).logabsdet for one in x])
    return float((flow(x)[1] - exact).detach().abs().max())


class Dispatched(TorchDispatchMode):
    """Every operation that runs inside, with whether it multiplies float32 matrices in TF32 where there is a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.products: list[tuple[torch.dtype, bool, tuple[int, ...]]] = []  # dtype, rounded, shape of the result

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(func._overloadpacket.__name__)
        if self.names[-1] in ("mm", "addmm", "bmm", "baddbmm", "linalg_solve_triangular"):
            self.products.append((result.dtype, torch.get_float32_matmul_precision() != "highest", result.shape))
        return result


@pytest.fixture
def fixed_steps(monkeypatch):
    """From now on, decoding uses steps of fixed shape, which a GPU records, in place of the cache that grows."""

    def switch() -> None:
        for module in (flow_module, prior_module):
            monkeypatch.setattr(module, "stepper", partial(stepper, fixed=True))

    return switch


@pytest.fixture(scope="session")
def digits():
    """The shipped model."""
    return Farmer.from_pretrained("digits")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run folder after 20 steps of preset tiny. Tests copy it before they change it, or put it back."""
    from helpers import QUICK

    from farmer_ref import train

    folder = tmp_path_factory.mktemp("trained")
    train.main([*QUICK, "--out", str(folder)])
    return folder


@pytest.fixture
def command(tmp_path):
    """Run `python -m farmer_ref.NAME` in an empty folder, as a user does."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", f"farmer_ref.{name}", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)

    return run
