"""What the commands share: flags are parsed, and what a person got wrong is one line and exit code 2."""

import contextlib
import errno
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from lm.config import flatten, load
from lm.errors import TRY_AGAIN, InputError, RunStopped, TryAgain, nearest

# What the system may refuse, whatever the program was writing or reading.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def errors_as_lines(
    before: Callable[[str, int], None] = lambda line, code: None,
) -> Iterator[None]:
    """Ends the program with a line where the block raises what is no bug.

    Args:
        before: called with the line and the exit code before that.
    """
    try:
        yield
    except BaseException as error:
        found = as_line(error)
        if not found:
            raise
        before(*found)
        leave(*found)


def as_line(error: BaseException) -> tuple[str, int] | None:
    """Returns the line and the exit code of what is no bug; None of what is."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, RunStopped):
        return str(error), 1
    if isinstance(error, TryAgain):
        return str(error), TRY_AGAIN
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        place = f"'{error.filename}': " if error.filename else ''
        return f'{place}{error.strerror}' + '.' * bool(place), 2
    if isinstance(error, KeyboardInterrupt):
        return 'interrupted; the same command goes on from what is kept.', 130
    return None


def leave(error: object, code: int) -> None:
    """Ends the program with a line and an exit code."""
    print(f'error: {error}', file=sys.stderr)
    sys.exit(code)


def no_more(arguments: list[str]) -> None:
    """Raises InputError for what is left of a command line after its options."""
    if len(arguments) > 1:
        raise InputError(f"unexpected argument '{arguments[1]}': options begin with '--'.")


def parse_flags(
    arguments: list[str], module: Any, example: str, base: Path | None = None
) -> list[str]:
    """Parses the command line; a mistake in it is one line that names the nearest right choice.

    Args:
        arguments: the program and what stands behind it.
        module: of the command: its docstring and flags are its help.
        example: of a config file, for messages.
        base: the config whose keys `--config.KEY=VALUE` changes where there is no --config; None: that
            is a mistake.
    """
    if {'--help', '-h', '-help', '--helpfull', '--helpshort'} & set(arguments):
        print(module.__doc__)
        _, options = flags.FLAGS.main_module_help().strip().split('\n', 1)
        print(f'Options:\n{options}')
        sys.exit(0)
    if base:
        arguments = [arguments[0], f'--config={base}', *arguments[1:]]
    try:
        keys = _check_config_flags(arguments, example)
        return flags.FLAGS(arguments)
    except InputError as error:
        leave(error, 2)
    except flags.UnrecognizedFlagError as error:
        known = flags.FLAGS.get_key_flags_for_module(module)
        names = [f'--{flag.name}' for flag in known]
        leave(f'--{error.flagname} is not an option.{nearest(f"--{error.flagname}", names)}', 2)
    except flags.Error as error:
        leave(_flag_error(' '.join(str(error).split()), keys), 2)
    raise AssertionError('unreachable')


def _flag_error(message: str, keys: dict[str, Any]) -> str:
    """Returns what absl says of a value, in the words of this project."""
    found = re.match(r'flag --config\.([\w.]+)=(.*?): ', message)
    if found and found[1] in keys:
        kind = type(keys[found[1]]).__name__
        return f"config.{found[1]} = '{found[2]}' is not of its type, {kind}."
    return message


def _check_config_flags(arguments: list[str], example: str) -> dict[str, Any]:
    """Returns the keys and values of the config file that the command line names.

    Raises:
        InputError: the file does not exist or cannot be loaded, or it has no such key as is set.
    """
    path = None
    for before, argument in zip(['', *arguments], arguments, strict=False):
        if argument.startswith('--config='):
            path = argument.removeprefix('--config=')
        elif before == '--config':
            path = argument
    keys = [a[len('--config.') :].split('=')[0] for a in arguments if a.startswith('--config.')]
    if path is None:
        if keys:
            raise InputError(
                f'--config.{keys[0]} changes a key of a config: give --config=FILE too, such as '
                f'--config={example}.'
            )
        return {}
    known = dict(flatten(_load(path).to_dict()))
    for key in keys:
        if key not in known:
            inside = next((name for name in known if name.startswith(f'{key}.')), None)
            hint = (
                f' It is a section; set one of its keys, such as config.{inside}.' if inside else ''
            )
            hint = hint or nearest(key, known)
            raise InputError(f"'config.{key}' is not a config key.{hint}")
    return known


def _load(path: str) -> ConfigDict:
    try:
        return load(path)
    except InputError:
        raise
    except Exception as error:  # Whatever a person's own file raises.
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f"config file '{path}'" + (f', line {line}' if line else '')
        text = ' '.join(str(getattr(error, 'msg', error)).split())
        raise InputError(f'{place}: {type(error).__name__}: {text}') from None
