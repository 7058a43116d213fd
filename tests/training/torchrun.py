"""Run commands one after another under torchrun, as a user runs each: `torchrun ... tests/training/torchrun.py JOBS`.

JOBS is JSON, a list of [command, steps, arguments]; where steps is not 0, process 1 alone gets SIGTERM after so many.
The grids of training must be drawn by process 0 alone.
"""

import importlib
import json
import signal
import sys

import torch

from farmer_ref.model.prior import AutoregressivePrior
from farmer_ref.support import cli, parallel
from farmer_ref.training.trainer import Trainer

optimise, draw = Trainer._optimise, AutoregressivePrior.sample


def run(command, steps, arguments):
    def drawing_once(prior, *rest, **options):
        assert command == "sample" or parallel.rank() == 0, "what one process writes, one process draws"
        return draw(prior, *rest, **options)

    def interrupting(trainer, batch):
        logged = optimise(trainer, batch)
        if trainer.step == steps and parallel.rank() == 1:
            signal.raise_signal(signal.SIGTERM)
        return logged

    Trainer._optimise, AutoregressivePrior.sample = interrupting, drawing_once
    try:
        importlib.import_module(f"farmer_ref.{command}").main(arguments)
    except SystemExit as left:
        if not steps or left.code != 128 + signal.SIGTERM:
            raise


def main():
    for job in json.loads(sys.argv[1]):
        run(*job)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cli.run(main)
