"""Command lines: arguments to settings, and whatever ends a command to one clear line with an exit code."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

import torch
import tyro
from tqdm import tqdm

from farmer_ref.support import parallel
from farmer_ref.support.errors import InputError, shown
from farmer_ref.support.files import write_json
from farmer_ref.support.hub import pinned
from farmer_ref.support.settings import allowed_of

Settings = TypeVar("Settings")
DEBUG = "FARMER_DEBUG"  # an environment variable: show tracebacks
LOGGED_EVERY = 10.0  # seconds between two lines of a progress bar in a log file, where each line stays
LONGEST_LINE = 2000  # characters of a message
TOO_LARGE = (  # in PyTorch's messages
    "allocate memory",
    "not enough memory",
    "Storage size calculation overflowed",
    "Stride calculation overflowed",
    "integer multiplication overflow",
)


def parse(module: str, default: Settings, description: str, argv: list[str] | None = None) -> Settings:
    """Settings (a dataclass) from the arguments of `python -m <module>`; `--help` shows `default`."""
    prog, arguments = f"python -m {module}", sys.argv[1:] if argv is None else argv
    with _one_line(prog, arguments, default), _in_paragraphs():
        return tyro.cli(type(default), prog=prog, description=description, default=default, args=arguments)


def parse_one_of(module: str, defaults: dict[str, Any], description: str, argv: list[str] | None = None) -> Any:
    """Settings (a dataclass) of the subcommand of `python -m <module>` that the arguments name."""
    prog, arguments = f"python -m {module}", sys.argv[1:] if argv is None else argv
    chosen = tyro.extras.subcommand_type_from_defaults(
        defaults,
        {name: (type(settings).__doc__ or "").strip() for name, settings in defaults.items()},
        prefix_names=False,
    )
    command = next(iter(arguments), None)
    if command not in (*defaults, "-h", "--help"):
        given = "not given" if command is None else shown(command)
        raise InputError(f"command is {given}; allowed: {', '.join(defaults)}")
    with _one_line(f"{prog} {command}", arguments, defaults.get(command)), _in_paragraphs():
        return tyro.cli(chosen, prog=prog, description=description, args=arguments)


def flags(settings: Any, prefix: str = "--") -> Iterator[str]:
    """The flags of settings (a dataclass) and of those inside them: --steps, --model.flow-width."""
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            yield from flags(value, f"{name}.")
        else:
            yield name


@contextlib.contextmanager
def _one_line(prog: str, arguments: Sequence[str], settings: Any) -> Iterator[None]:
    """Inside, arguments that tyro cannot parse raise `InputError`: one line in place of its box.

    tyro offers this hook to those who accept that it may change; without it, its box appears, with the same exit code.
    """
    hook = getattr(getattr(tyro, "_errors", None), "on_parse_error", None)
    with hook(lambda event: _refuse(event, prog, arguments, settings)) if hook else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _in_paragraphs() -> Iterator[None]:
    """Inside, `--help` joins the lines of a docstring's paragraphs; tyro breaks where one is indented.

    As with `_one_line`, the function that is replaced is not promised; without it, the lines are as in the source.
    """
    strings = getattr(tyro, "_strings", None)
    original = getattr(strings, "remove_single_line_breaks", None)
    if original is None:
        yield
        return
    strings.remove_single_line_breaks = _paragraphs
    try:
        yield
    finally:
        strings.remove_single_line_breaks = original


def _paragraphs(text: str) -> str:
    """The paragraphs of a text, each in one line."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip()))


def _refuse(event: Any, prog: str, arguments: Sequence[str], settings: Any) -> None:
    """Raise `InputError` for what tyro found: an argument that it does not know, or a value that does not fit."""
    known = list(flags(settings))
    if tokens := getattr(event, "tokens", None):
        name = tokens[0].partition("=")[0].replace("_", "-")
        same_end = [flag for flag in known if flag.endswith(f".{name.lstrip('-')}")]
        near = same_end or difflib.get_close_matches(name, known, cutoff=0.75) if name.startswith("-") else []
        question = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"argument is {shown(tokens[0])}; allowed: those of {prog} --help{question}")
    if argument := getattr(event, "argument", None):
        flag = argument.lowered.name_or_flags[0]
        given = getattr(event, "value", None) or _given(arguments, flag)
        field = flag.removeprefix("--").replace("-", "_")
        what = "given no value" if given is None else shown(given)
        raise InputError(f"{field} is {what}; allowed: {allowed_of(type(settings), field)}")


def _given(arguments: Sequence[str], flag: str) -> str | None:
    """What follows a flag (for the last time) on a command line."""
    found: list[str] | None = None
    reading = False
    for token in arguments:
        name, equals, value = token.partition("=")
        if token.startswith("--"):
            reading = name.replace("_", "-") == flag
            found = ([value] if equals else []) if reading else found
        elif reading and found is not None:
            found.append(token)
    return " ".join(found) if found else None


def first_pass(argv: list[str] | None, **defaults: str | bool | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the options that decide the defaults of the others; returns their values and the remaining arguments.

    An option whose default is False is a flag.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, default in defaults.items():
        spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))  # tyro takes both
        if default is False:
            parser.add_argument(*spellings, action="store_true")
        else:
            parser.add_argument(*spellings, default=default)
    try:
        return parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        name = str(error.argument_name).split("/")[0].removeprefix("--").replace("-", "_")
        value = "" if defaults[name] is False else " VALUE"
        raise InputError(
            f"{name} cannot be parsed ({error.message}); allowed: --{name.replace('_', '-')}{value}"
        ) from None


def split_run_and_guidance(default_run: str, argv: list[str] | None) -> tuple[str, list[str]]:
    """The value of `--run`, which decides the other defaults, and the arguments with `--guidance W` spelled out.

    A Hub repository's name gets its current commit here, for the rest of the command.
    """
    known, others = first_pass(argv, run=default_run, guidance=None)
    scale = [] if known.guidance is None else ["--guidance.scale", known.guidance]
    run = pinned(known.run)
    return run, [*others, "--run", run, *scale]


def run(main: Callable[[], None]) -> None:
    """Run a command: whatever ends it is one line on standard error, and an exit code.

    2: input that can be corrected (`InputError`, a file that the system refuses, too little memory). 1: an error that
    we did not foresee; FARMER_DEBUG=1 shows the traceback of either. 130: Ctrl-C. 143: SIGTERM, which ends a command as
    Ctrl-C does, so that temporary files go. Printing needs neither a reader nor the terminal's encoding to be ours.
    """
    streams, bar, hook = (sys.stdout, sys.stderr), tqdm.__init__, threading.excepthook
    if not (sys.stderr and sys.stderr.isatty()):
        tqdm.__init__ = functools.partialmethod(bar, mininterval=LOGGED_EVERY)
    sys.stdout, sys.stderr = (stream and Printer(stream) for stream in streams)
    threading.excepthook = _tell_of_thread
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        main()
        if sys.stdout:
            sys.stdout.flush()
        parallel.leave()
    except SystemExit:  # of an interrupted run, by all processes together
        parallel.leave()
        raise
    except (Exception, KeyboardInterrupt, Terminated) as error:
        # Nothing is left here: one process alone would wait for the others, and torchrun for all of them.
        if os.environ.get(DEBUG):
            raise
        fail(*ending_of(error))
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, handler)
        sys.stdout, sys.stderr = streams
        tqdm.__init__, threading.excepthook = bar, hook


def report(text: str, figures: dict[str, Any], out: Path | None) -> None:
    """Write figures to `out`, if it is given, and print what they say, both on rank 0 only.

    They are written first, because printing may fail; and printed even if they cannot be written: a disk may be full.
    """
    try:
        if out:
            parallel.on_rank_zero(lambda: write_json(out, figures))
    finally:
        parallel.print_once(text)


def ending_of(error: BaseException) -> tuple[str, int]:
    """The line that tells a user what ended a command, and its exit code."""
    text = str(error) or type(error).__name__
    match error:
        case KeyboardInterrupt():
            return "interrupted (Ctrl-C)", 130
        case Terminated():
            return "terminated (SIGTERM)", 143
        case InputError():
            return text, 2
        case OSError():
            name = shown(error.filename) if error.filename else "a file"
            return f"{name} cannot be used ({error.strerror or text}); allowed: another", 2
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in text for sign in TOO_LARGE):
        return f"memory is too small ({text.splitlines()[0]}); allowed: smaller batches, counts or models", 2
    return f"{type(error).__name__}: {text} (not foreseen; {DEBUG}=1 shows the traceback)", 1


def fail(line: str, code: int) -> NoReturn:
    """Print one line on standard error and exit."""
    line = " ".join(line.splitlines())
    cut = line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    print(f"error: {cut}", file=sys.stderr)
    raise SystemExit(code) from None


def _tell_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Show what ended a thread, but for a full disk under TensorBoard's: the caller says so in one line."""
    if not isinstance(ended.exc_value, OSError) or os.environ.get(DEBUG):
        threading.__excepthook__(ended)


class Terminated(BaseException):
    """SIGTERM came. As with `KeyboardInterrupt`, no `except Exception` stops it."""


def _terminate(*_: object) -> None:
    raise Terminated


class Printer:
    """A text stream that never stops a command: it writes \\xe9 for a letter that its encoding lacks, and goes on where
    nobody reads any more, as after `| head`. What is printed then is lost."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write, as `TextIO.write`."""
        self._without_reader(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, as `TextIO.flush`."""
        self._without_reader(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _without_reader(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise InputError(
                    f"what this command prints cannot be written ({error.strerror}); allowed: a disk with free space"
                ) from None
