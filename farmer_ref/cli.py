"""How the commands read their arguments and report bad ones: one clear line, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import tyro

from farmer_ref.errors import InputError

Settings = TypeVar("Settings")


def parse(module: str, default: Settings, description: str, argv: list[str] | None = None) -> Settings:
    """Settings (a dataclass) from the arguments of `python -m <module>`; `--help` shows `default`."""
    prog = f"python -m {module}"
    return tyro.cli(type(default), prog=prog, description=description, default=default, args=argv)


def run(main: Callable[[], None]) -> None:
    """Run a command; `InputError` becomes one line on standard error and exit code 2."""
    try:
        main()
    except InputError as error:
        fail(error)


def fail(error: InputError) -> NoReturn:
    """One line on standard error, exit code 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
