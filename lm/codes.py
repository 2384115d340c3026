"""Control codes: what a document is, as tokens before its text (Keskar et al. 2019, CTRL).

`config.tokenizer.codes` names them; each is an id of its own, in one of three forms:

- `news`: a kind, an origin, a style; anything that a source says of a document.
- `title=`: a code with text, such as the title of a document or of its section: written `title=The cat`,
  it is the id, the tokens of `The cat`, and the id again, where it ends.
- `words<100`, `characters>=5000`: a length. Each document has the nearest that holds of it.

https://arxiv.org/abs/1909.05858
"""

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from lm.errors import InputError, nearest

# What lengths are counted in.
UNITS: dict[str, Callable[[str], int]] = {
    'words': lambda text: len(text.split()),  # Between white space.
    'characters': len,
}
_LENGTH = re.compile(rf'({"|".join(UNITS)})(<|>=)(\d+)')


def check(names: tuple[str, ...]) -> None:
    """Checks `config.tokenizer.codes`.

    Raises:
        InputError: a name stands twice, or has a form that cannot be written in a source.
    """
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"config.tokenizer.codes: '{name}' stands there twice.")
        length = _LENGTH.fullmatch(name)
        if not length and not re.fullmatch(r'[^\s,{}=<>]+=?', name):
            raise InputError(
                f"config.tokenizer.codes: '{name}' is not a code such as 'news', a code with text "
                "('title=') or a length ('words<100', 'characters>=5000')."
            )


def of_length(text: str, names: Iterable[str]) -> list[str]:
    """Returns the codes of a text's length: the least upper bound, and the largest lower one.

    >>> of_length('one two three', ('words<2', 'words<5', 'words<9', 'words>=1', 'words>=3'))
    ['words<5', 'words>=3']
    """
    found: dict[tuple[str, str], int] = {}
    sizes: dict[str, int] = {}
    for unit, sign, digits in (m.groups() for m in map(_LENGTH.fullmatch, names) if m):
        size, limit = sizes.setdefault(unit, UNITS[unit](text)), int(digits)
        key, best = (unit, sign), (min if sign == '<' else max)
        if size < limit if sign == '<' else size >= limit:
            found[key] = best(found.get(key, limit), limit)
    return [f'{unit}{sign}{limit}' for (unit, sign), limit in found.items()]


def tokens(
    codes: Iterable[str],
    ids: Mapping[str, int],
    encode: Callable[[str], np.ndarray],
    place: str,
) -> list[int]:
    """Returns the tokens of codes: first those without text, then those with, around it.

    >>> tokens(['title=Ab', 'genre=news'], {'news': 300, 'title=': 301}, Bytes().encode, 'codes')
    [300, 301, 69, 102, 301]

    Args:
        codes: `NAME`, `NAME=TEXT`, or `FIELD=NAME` as a source has it. Without a text after the = there
            is no code.
        ids: of the names, as `lm.vocabulary` gives them.
        encode: of the tokenizer.
        place: where the codes were given.

    Raises:
        InputError: a code is not known; the nearest one is named.
    """
    alone, with_text = [], []
    for code in codes:
        name, equals, text = code.partition('=')
        if equals and not text:
            continue
        if equals and f'{name}=' in ids:
            mark = ids[f'{name}=']
            with_text += [mark, *encode(text).tolist(), mark]
            continue
        name = text or name
        if name not in ids:
            hint = nearest(name, ids) or ' config.tokenizer.codes is empty.'
            raise InputError(f"{place}: the code '{name}' is not known.{hint}")
        alone.append(ids[name])
    return alone + with_text


def before(window: np.ndarray, codes: np.ndarray, begins: bool) -> np.ndarray:
    """Returns a window of a document with codes: after its BOS, or where it has none, before it.

    >>> before([1, 10, 11], [300], begins=True), before([20, 21], [300], begins=False)
    ([1, 300, 10, 11], [300, 20, 21])

    Args:
        window: int [n].
        codes: int [m].
        begins: the window begins the document, with its BOS.
    """
    begin = int(begins)
    return np.concatenate([window[:begin], codes, window[begin:]]).astype(np.int32)
