"""The one exception for input that a user can correct."""


class InputError(Exception):
    """Bad input, reported in one line: the argument's name, what was given, what is allowed.

    The commands print the line and exit with code 2. It is not a `ValueError`, because the command-line library catches
    those and prints a box of its own.
    """


def require(condition: bool, name: str, given: object, allowed: str) -> None:
    """Raise `InputError`, in the form that all our messages have, unless `condition` holds."""
    if not condition:
        raise InputError(f"{name} is {shown(given)}; allowed: {allowed}")


def shown(value: object, most: int = 200) -> str:
    """A value as Python writes it, in one line of at most `most` characters."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= most else f"{text[: most - 3]}..."
