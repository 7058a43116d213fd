"""Devices and processes: each takes its own, and what torchrun sets wrongly is named."""

import pytest
import torch

from farmer_ref import InputError
from farmer_ref.support.parallel import join, resolve_device


def test_unknown_device_is_named():
    with pytest.raises(InputError, match="device is 'abacus'"):
        resolve_device("abacus")


@pytest.mark.parametrize(
    ("set_by_torchrun", "device", "message"),
    [
        ({"WORLD_SIZE": "2"}, "cpu", "LOCAL_RANK is None; allowed: a number"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cuda:1", "device is 'cuda:1'; allowed: auto, cpu, cuda"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "2"}, "auto", "--nproc-per-node is '3 or more'; allowed: up to 2"),
    ],
)
def test_what_torchrun_decides_is_named(monkeypatch, set_by_torchrun, device, message):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in set_by_torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=message):
        join(device)


def test_under_torchrun_a_process_touches_its_own_gpu_only(monkeypatch):
    """Chosen before it is tried: what is made on "cuda" without a number would be on GPU 0."""
    done = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: done.append(f"choose {number}"))
    monkeypatch.setattr(torch, "empty", lambda *_, device: done.append(f"try {device}"))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, timeout: done.append(backend))
    assert join("cuda") == torch.device("cuda", 1)
    assert done == ["choose 1", "try cuda:1", "cpu:gloo,cuda:nccl"]
