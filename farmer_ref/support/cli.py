"""How the commands read their arguments and report bad ones: one clear line, exit code 2."""

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
    """The settings (a dataclass) of whichever subcommand of `python -m <module>` was asked for, by name."""
    chosen = tyro.extras.subcommand_type_from_defaults(
        defaults,
        {name: (type(settings).__doc__ or "").strip() for name, settings in defaults.items()},
        prefix_names=False,
    )
    return tyro.cli(chosen, prog=f"python -m {module}", description=description, args=argv)


def split_run_and_guidance(default_run: str, argv: list[str] | None) -> tuple[str, list[str]]:
    """The value of `--run`, which decides the other defaults, and the arguments with `--guidance W` spelled out.

    A repository of the Hub is named with its present commit from here on.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--run", default=default_run)
    first.add_argument("--guidance")
    known, others = first.parse_known_args(argv)
    scale = [] if known.guidance is None else ["--guidance.scale", known.guidance]
    run = pinned(known.run)
    return run, [*others, "--run", run, *scale]


def run(main: Callable[[], None]) -> None:
    """Run a command; `InputError` becomes one line on standard error and exit code 2."""
    try:
        main()
    except InputError as error:
        fail(error)
    finally:
        parallel.leave()


def fail(error: InputError) -> NoReturn:
    """One line on standard error, exit code 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
