"""The command line as a user meets it: help, flags that are wrong, and how a command ends."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from helpers import fails_with_one_line
from tqdm import tqdm

from farmer_ref import InputError, ablate, apply, distill, evaluate, parameters, sample, train
from farmer_ref.data import __main__ as look
from farmer_ref.support import cli


def test_help_shows_the_preset_s_own_values(command):
    done = command("train", "--preset", "mnist", "--help")
    assert done.returncode == 0
    words = " ".join(done.stdout.replace("│", " ").split())
    assert "python -m farmer_ref.train" in words
    assert "(default: 28)" in words  # image size
    assert "(default: runs/mnist)" in words


def test_help_breaks_no_sentence_into_lines(monkeypatch, capsys):
    """Where the terminal is wide enough: docstrings have lines of their own."""
    monkeypatch.setenv("COLUMNS", "400")
    for main, line, sentence in (
        (
            train.main,
            ["--help"],
            "recompute the rest: less memory, about a third more work",
        ),
        (sample.main, ["--help"], "in the format of the usual evaluators (arr_0: uint8"),
        (apply.main, ["inpaint", "--help"], "or an image file of the model's size, white where pixels are missing"),
    ):
        with pytest.raises(SystemExit) as left:
            main(line)
        assert left.value.code == 0
        assert any(sentence in printed for printed in capsys.readouterr().out.splitlines()), sentence
    assert cli._paragraphs("One\n  line.\n\n  (Another.)\n") == "One line.\n\n(Another.)"


@pytest.mark.parametrize(
    ("main", "line", "parts"),
    [
        (train.main, "--seed abc", ["seed is 'abc'", "a whole number"]),
        (train.main, "--steps=abc", ["steps is 'abc'", "1 or more"]),
        (train.main, "--seed", ["seed is given no value", "a whole number"]),
        (train.main, "--pixels histogram", ["'--pixels'", "farmer_ref.train --help", "did you mean --model.pixels?"]),
        (train.main, "--model.pixels cubic", ["model.pixels is 'cubic'", "linear, histogram"]),
        (train.main, "--model.max_log_scale abc", ["model.max_log_scale is 'abc'", "above 0, or None"]),
        (train.main, "--preset", ["preset", "--preset VALUE"]),
        (train.main, "--compile maybe", ["argument is 'maybe'"]),
        (sample.main, "--labls 3", ["'--labls'", "did you mean --labels?"]),
        (sample.main, "--labels 1 x", ["labels is '1 x'", "allowed: whole numbers"]),
        (sample.main, "--guidance x", ["guidance.scale is 'x'", "a finite number"]),
        (sample.main, "--seed " + "9" * 5000, ["seed is '999"]),
        (evaluate.main, "--images x", ["images is 'x'", "2 or more, or None"]),
        (distill.main, "--form x", ["form is 'x'", "forward, inverse"]),
        (ablate.main, "--table 3 --samples 1", ["samples is 1", "2 or more"]),
        (ablate.main, "--table 3 --images 1", ["images is 1", "2 or more"]),
        (ablate.main, "--table 9", ["table is '9'", "any number of: 3, 4, 5"]),
        (parameters.main, "--presets tiny", ["did you mean --preset?"]),
        (look.main, "folder:a folder:b", ["argument is 'folder:b'"]),
        (apply.main, "", ["command is not given", "inpaint, edit, anomaly, classify"]),
        (apply.main, "paint", ["command is 'paint'", "inpaint, edit, anomaly, classify"]),
        (apply.main, "inpaint --partcles 3", ["did you mean --particles?", "apply inpaint --help"]),
        (apply.main, "edit --change colour", ["change is 'colour'", "class, details, interpolate"]),
        (apply.main, "edit --steps", ["steps is given no value"]),
    ],
)
def test_arguments_that_cannot_be_parsed_are_one_line(capsys, main, line, parts):
    fails_with_one_line(capsys, main, line.split(), *parts)


def test_a_wrong_flag_ends_with_2_and_no_traceback(command):
    done = command("sample", "--labls", "3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    done = command("sample", "--run", "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: model is 'nothing'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (InputError("a is 1;\nallowed: 2"), 2, "a is 1; allowed: 2"),
        (OSError(36, "File name too long", "x" * 5000), 2, "File name too long"),
        (MemoryError(), 2, "memory is too small"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."), 2, "memory is too small"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (cli.Terminated(), 143, "terminated"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "memory is too small"),
        (InputError("a name of " + "x" * 5000), 2, "a name of "),
    ],
)
def test_every_end_is_one_line_with_its_exit_code(capsys, monkeypatch, error, code, part):
    def main():
        raise error

    with pytest.raises(SystemExit) as raised:
        cli.run(main)
    assert raised.value.code == code
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert len(line) < 2100
    assert part in line
    monkeypatch.setenv("FARMER_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.run(main)


@pytest.mark.parametrize(
    ("error", "times"),
    [(None, 1), (SystemExit(143), 1), (InputError("a"), 0), (ZeroDivisionError(), 0), (cli.Terminated(), 0)],
)
def test_a_process_that_fails_does_not_leave_the_others(monkeypatch, error, times):
    """On GPUs that waits until they leave, too, who wait for this process; and torchrun waits for its exit code."""
    left = []
    monkeypatch.setattr(cli.parallel, "leave", lambda: left.append(error))

    def main():
        if error is not None:
            raise error

    with contextlib.suppress(SystemExit):
        cli.run(main)
    assert len(left) == times


def test_an_unforeseen_error_says_how_to_see_the_traceback(capsys):
    with pytest.raises(SystemExit):
        cli.run(lambda: {}["absent"])
    assert "FARMER_DEBUG=1" in capsys.readouterr().err


PROGRAM = """
import signal, sys, time
from pathlib import Path
from farmer_ref.support import cli
from farmer_ref.support.files import replace_file

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def write(path):
    path.write_text("half")
    print("begun", flush=True)
    time.sleep(60)

cli.run(lambda: replace_file(Path("result"), write))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_one_line_and_leaves_no_temporary_file(tmp_path, number, code):
    line = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        _, problems = process.communicate(timeout=30)
    assert process.returncode == code
    assert problems.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["ascii", "cp1251", "ascii:strict"])
def test_printing_survives_any_encoding(encoding):
    program = "from farmer_ref.support import cli; cli.run(lambda: print('Fréchet ±'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert b"chet" in done.stdout


def test_printing_survives_a_reader_that_has_gone(tmp_path):
    program = """
from farmer_ref.support import cli

def main():
    for _ in range(100_000):
        print("a line that nobody reads")
    open("written", "w").close()

cli.run(main)
"""
    line = f"{sys.executable} -c '{program}' | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "written").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_a_full_disk_under_standard_output_is_one_line():
    program = "from farmer_ref.support import cli; cli.run(lambda: print('a'))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(("error", "told"), [(OSError(28, "No space left"), False), (ValueError("odd"), True)])
def test_a_thread_without_a_disk_shows_no_traceback(capsys, error, told):
    """TensorBoard writes in a thread of its own; the run says in one line that the disk is full."""

    def fail():
        raise error

    def main():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    before = threading.excepthook
    cli.run(main)
    assert ("Traceback" in capsys.readouterr().err) == told
    assert threading.excepthook is before


def test_commands_run_in_a_thread():
    ended = []
    thread = threading.Thread(target=lambda: cli.run(lambda: ended.append(time.time())))
    thread.start()
    thread.join()
    assert ended


def test_progress_bars_write_few_lines_into_a_log(capsys):
    def main():
        for _ in tqdm(range(100)):
            time.sleep(0.005)

    cli.run(main)  # 0.5 seconds; on a terminal, five lines
    assert capsys.readouterr().err.count("it/s") <= 2
    assert tqdm(disable=False, file=io.StringIO()).mininterval < 1
