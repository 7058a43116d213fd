"""The one exception for input that a user can correct."""


class InputError(ValueError):
    """Bad input, told in one line: the argument's name, what was given, what is allowed.

    The commands print the line and exit with code 2; in a notebook it is an ordinary ValueError.
    """
