"""Command lines: arguments to settings, and bad input to one clear line with exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import tyro

from farmer_ref.support import parallel
from farmer_ref.support.errors import InputError
from farmer_ref.support.hub import pinned

Settings = TypeVar("Settings")


def parse(module: str, default: Settings, description: str, argv: list[str] | None = None) -> Settings:
    """Settings (a dataclass) from the arguments of `python -m <module>`; `--help` shows `default`."""
    prog = f"python -m {module}"
    return tyro.cli(type(default), prog=prog, description=description, default=default, args=argv)


def parse_one_of(module: str, defaults: dict[str, Any], description: str, argv: list[str] | None = None) -> Any:
    """Settings (a dataclass) of the subcommand of `python -m <module>` that the arguments name."""
    chosen = tyro.extras.subcommand_type_from_defaults(
        defaults,
        {name: (type(settings).__doc__ or "").strip() for name, settings in defaults.items()},
        prefix_names=False,
    )
    return tyro.cli(chosen, prog=f"python -m {module}", description=description, args=argv)


def first_pass(argv: list[str] | None, **defaults: str | bool | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the options that decide the defaults of the others; returns their values and the remaining arguments.

    An option whose default is False is a flag.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, default in defaults.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", default=default)
    return parser.parse_known_args(argv)


def split_run_and_guidance(default_run: str, argv: list[str] | None) -> tuple[str, list[str]]:
    """The value of `--run`, which decides the other defaults, and the arguments with `--guidance W` spelled out.

    A Hub repository's name gets its current commit here, for the rest of the command.
    """
    known, others = first_pass(argv, run=default_run, guidance=None)
    scale = [] if known.guidance is None else ["--guidance.scale", known.guidance]
    run = pinned(known.run)
    return run, [*others, "--run", run, *scale]


def run(main: Callable[[], None]) -> None:
    """Run a command; an `InputError` becomes one line on standard error and exit code 2."""
    try:
        main()
    except InputError as error:
        fail(error)
    finally:
        parallel.leave()


def fail(error: InputError) -> NoReturn:
    """Print one line on standard error and exit with code 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
