"""The number of CPU threads: chosen by the clock, and left alone where the user has said it."""

import pytest
import torch

from farmer_ref import PRESETS, Farmer
from farmer_ref.training import threads

DEVICE = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A machine with four threads, on which a unit of work takes as long as a table says."""

    class Machine:
        threads, now, seconds, calls = 4, 0.0, {1: 1.0, 2: 0.6, 4: 0.5}, []

        def work(self):
            self.calls.append(self.threads)
            self.now += self.seconds[self.threads]

    made = Machine()
    made.calls = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "MOST", 4)
    monkeypatch.setattr(threads, "_chosen", 4)
    monkeypatch.setattr(threads, "_said", None)
    monkeypatch.setattr(threads.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: setattr(made, "threads", number))
    monkeypatch.setattr(torch, "get_num_threads", lambda: made.threads)
    monkeypatch.setattr(threads, "run_layer", lambda layer, images, tokens: made.work())
    return made


def choose(wanted=None):
    model = Farmer(PRESETS["tiny"].model)
    return threads.choose_threads(model, images=2, tokens=16, device=DEVICE, wanted=wanted)


@pytest.mark.parametrize(
    ("seconds", "number"),
    [
        ({1: 1.0, 2: 0.6, 4: 0.5}, 4),
        ({1: 1.0, 2: 0.6, 4: 0.59}, 2),  # little more: the smaller number
        ({1: 1.0, 2: 1.1, 4: 1.2}, 1),
        ({1: 1.0, 2: 30.0, 4: 30.0}, 1),
    ],
)
def test_the_fastest_number_is_taken_and_said(machine, capsys, seconds, number):
    machine.seconds = seconds
    choose()
    assert machine.threads == number
    assert capsys.readouterr().err.startswith(f"note: {number} thread")


def test_a_hopeless_number_is_timed_once(machine):
    machine.seconds = {1: 1.0, 2: 30.0, 4: 30.0}
    choose()
    assert machine.calls.count(4) == machine.calls.count(2) == 2  # to warm up, and once


def test_what_the_user_has_said_stays(machine, monkeypatch, capsys):
    machine.threads = 3  # torch.set_num_threads(3)
    choose()
    assert machine.threads == 3
    choose(wanted=2)
    assert machine.threads == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    choose()
    assert machine.threads == 2
    assert not machine.calls and not capsys.readouterr().err


def test_slow_steps_bring_another_choice(machine):
    choice = choose()
    calls = len(machine.calls)
    for _ in range(5):
        choice.check(0.5)
    assert len(machine.calls) == calls and machine.threads == 4
    machine.seconds = {1: 1.0, 2: 9.0, 4: 9.0}  # a neighbour comes
    choice.check(9.0)
    assert machine.threads == 1
    machine.seconds = {1: 1.0, 2: 0.6, 4: 0.5}  # and goes, which shows only when it is measured again
    choice.check(1.0)
    assert machine.threads == 1
    machine.now += threads.FIRST_WAIT + 1
    choice.check(1.0)
    assert machine.threads == 4


def test_the_wait_grows_while_the_choice_stays(machine):
    choice = choose()
    choices = 0
    for _ in range(300):
        before = len(machine.calls)
        machine.now += 1
        choice.check(0.5)
        choices += len(machine.calls) > before
    assert 2 < choices < 10
