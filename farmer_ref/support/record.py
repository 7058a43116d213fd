"""Provenance of measured numbers (command, commit, date, device, versions); statistics over seeds; timing."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

ROOT = Path(__file__).parent.parent.parent
Name = TypeVar("Name", bound=Hashable)


def provenance(device: torch.device) -> dict[str, Any]:
    """The command, commit, date, device and versions behind a result."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    arguments = " ".join("PATH" if os.path.isabs(argument) else argument for argument in sys.argv[1:])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "command": f"python -m {module.name if module else sys.argv[0]} {arguments}".strip(),
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.date.today().isoformat(),
        "device": name,
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation over seeds; None for the deviation of a single value."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "standard_deviation": spread}


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, with the values themselves."""
    return {**mean_and_spread(values), "seeds": list(values)}


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, including the GPU work that it launches."""
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def timed_in_turns(
    calls: dict[Name, Callable[[], object]], rounds: int, device: torch.device
) -> dict[Name, list[float]]:
    """Seconds of every call in each round, after one round of warm-up.

    Calls alternate, so that drift in the machine's speed affects all of them, and the one that comes first changes from
    round to round.
    """
    names, times = list(calls), {name: list[float]() for name in calls}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(timed(calls[name], device))
    return {name: seconds[1:] for name, seconds in times.items()}


def git(*arguments: str) -> str:
    """The output of a git command in this repository; empty without a repository, or without git."""
    if not (ROOT / ".git").exists():  # an installed package: a repository around it is another's
        return ""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except OSError:
        return ""


def processor_fields() -> dict[str, str]:
    """What Linux reports of the first processor, by its names ("vendor_id", "cpu family"); empty elsewhere."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().split("\n\n")[0].splitlines() if information.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def processor() -> str:
    """The processor's name, if the system reports one; with family and model where the name says neither."""
    fields = processor_fields()
    name = fields.get("model name", "")
    if not name:
        return platform.processor() or platform.machine()
    exact = any(character.isdigit() for character in name) or "cpu family" not in fields
    return name if exact else f"{name}, family {fields['cpu family']}, model {fields['model']}"


def readable(device: str) -> str:
    """A recorded device without trade marks and needless words, to be shown."""
    return re.sub(r"\((?:R|TM)\)|(?: CPU| Processor)(?=,| @|$)", "", device)


def made_on(record: dict[str, Any]) -> str:
    """The device and the date of a result."""
    return f"{readable(record['device'])}, {record['date']}"
