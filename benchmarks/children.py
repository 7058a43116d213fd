"""Commands in forked children: no child imports PyTorch again, and whatever happens to it, its parent goes on."""

from __future__ import annotations

import datetime
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from farmer_ref.support import cli

Command = Callable[[list[str]], None]


def seed_or_date(seed: int) -> int:
    """The seed, or the date where it is 0, as 20260131: another day tries other cases."""
    return seed or int(datetime.date.today().strftime("%Y%m%d"))


def start(main: Command, arguments: list[str], folder: Path, *, seconds: int = 0, clock: int = 0) -> int:
    """Start a command in a child, which works in `folder` and prints into stdout and stderr there; its process id.

    SIGPROF ends it after so many `seconds` of processor time, SIGALRM after those of the `clock` (0: never).
    """
    child = os.fork()
    if child:
        return child
    code = 70
    try:  # everything of the child ends here
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(clock)
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        cli.run(lambda: main(arguments))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 70
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child: its exit code, or the number of the signal that ended it, negative."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def printed(folder: Path, name: str = "stderr") -> str:
    """What a child printed."""
    return (folder / name).read_text(errors="replace")


def last_line(folder: Path) -> str:
    """The last line that a child printed on standard error, shortened."""
    lines = printed(folder).strip().splitlines()
    return lines[-1][:300] if lines else ""
