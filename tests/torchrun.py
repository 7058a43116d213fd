"""Run a command's `main` under torchrun, as a user does; with a number of steps, process 1 gets SIGTERM after these."""

import importlib
import os
import signal
import sys

import torch

from farmer_ref import cli
from farmer_ref.engine import Trainer


def interrupt_after(steps: int) -> None:
    optimise = Trainer._optimise

    def interrupting(trainer, batch):
        logged = optimise(trainer, batch)
        if trainer.step == steps and os.environ.get("RANK", "1") == "1":
            signal.raise_signal(signal.SIGTERM)
        return logged

    Trainer._optimise = interrupting


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, steps, *sys.argv[1:] = sys.argv[1:]
    if int(steps):
        interrupt_after(int(steps))
    cli.run(importlib.import_module(f"farmer_ref.{command}").main)
