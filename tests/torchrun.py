"""Run commands one after another under torchrun, as a user runs each: `torchrun ... tests/torchrun.py JOBS`.

JOBS is JSON, a list of [command, steps, arguments]; where steps is not 0, process 1 alone gets SIGTERM after so many.
"""

import importlib
import json
import signal
import sys

import torch

from farmer_ref import cli, parallel
from farmer_ref.engine import Trainer

optimise = Trainer._optimise


def run(command, steps, arguments):
    def interrupting(trainer, batch):
        logged = optimise(trainer, batch)
        if trainer.step == steps and parallel.rank() == 1:
            signal.raise_signal(signal.SIGTERM)
        return logged

    Trainer._optimise = interrupting
    importlib.import_module(f"farmer_ref.{command}").main(arguments)


def main():
    for job in json.loads(sys.argv[1]):
        run(*job)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cli.run(main)
