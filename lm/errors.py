"""What a person can get wrong, said in one line.

`InputError` is raised for bad input: a mistyped name, a missing file, a mesh that does not fit. The
command line prints its message without a traceback and exits with code 2. Anything else that is
raised is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """Bad input: one line that names the thing, the place and the nearest right choice."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?`, or the choices where none is near, or '' for no choices."""
    choices = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    if choices:
        return f' Choose one of: {", ".join(sorted(choices))}.'
    return ''


def lookup(table: Mapping[str, Any], name: str, place: str) -> Any:
    """Returns `table[name]`.

    Args:
        table: an explicit table of entries by name.
        name: the entry asked for.
        place: where the name was given, such as `config.model.activation`.

    Raises:
        InputError: the table has no such entry; the nearest one is named.
    """
    if name not in table:
        raise InputError(f"{place} = '{name}' is not known.{nearest(name, table)}")
    return table[name]


# The exit code of what a later start may go through with: that of sysexits.h's EX_TEMPFAIL.
TRY_AGAIN = 75


class TryAgain(RuntimeError):
    """What was not there in time, such as another host: one line, and exit code 75 (`TRY_AGAIN`)."""


class RunStopped(RuntimeError):
    """A run that cannot go on by itself, such as one that diverged: one line, exit code 1."""
