"""Parts of a source: documents [a:b], percent of the characters [:90%], characters, words.

Of a source of pairs: pairs [a:b], or percent of the pairs [:90%].
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from lm.errors import InputError


class Document(NamedTuple):
    """A text.

    Attributes:
        text: the text.
        invalid_bytes: of it, those that were not UTF-8 and became U+FFFD.
        label: what is known of it, or at the second text of a pair, of both; '' for nothing.
        codes: what it is; see `lm.codes`.
    """

    text: str
    invalid_bytes: int = 0
    label: str = ''
    codes: tuple[str, ...] = ()


def decoded(data: bytes | str) -> Document:
    """Returns UTF-8 as text; what is not UTF-8 becomes U+FFFD and its bytes are counted."""
    if isinstance(data, str):
        # JSON may hold half a surrogate pair, which no encoding can write.
        text, lone = re.subn('[\ud800-\udfff]', '\ufffd', data)
        return Document(text, lone)
    try:
        return Document(data.decode())
    except UnicodeDecodeError:
        valid = len(data.decode(errors='ignore').encode())
        return Document(data.decode(errors='replace'), len(data) - valid)


_NUMBER = r'(\d+(?:\.\d+)?)?([%cw]?)'
_FORM = re.compile(rf'{_NUMBER}:{_NUMBER}')


def _cut_characters(text: str, start: int, stop: int) -> str:
    return text[start:stop]


def _cut_words(text: str, start: int, stop: int) -> str:
    """Cuts before the words `start` and `stop`, so that the parts joined are the text."""
    begins = [match.start() for match in re.finditer(r'\S+', text)]
    first = begins[start] if 0 < start < len(begins) else 0
    last = begins[stop] if stop < len(begins) else len(text)
    return text[first:last]


# Unit -> (how many of it a text has, the part of a text from one to another).
_UNITS: dict[str, tuple[Callable[[str], int], Callable[[str, int, int], str]]] = {
    '': (lambda text: 1, lambda text, start, stop: text),
    'c': (len, _cut_characters),
    'w': (lambda text: len(text.split()), _cut_words),
}
_UNITS['%'] = _UNITS['c']


@dataclasses.dataclass(frozen=True)
class Slice:
    """From `start` up to `stop` (None: the end), counted in `unit` over all documents in order.

    Attributes:
        unit: '' documents, '%' percent of the characters, 'c' characters, 'w' words (separated by
            white space). A percentage ends at int(characters * percent / 100), as in nanoGPT.
    """

    start: Fraction = Fraction(0)
    stop: Fraction | None = None
    unit: str = ''

    @property
    def is_all(self) -> bool:
        return self.start == 0 and self.stop is None

    def apply(self, read: Callable[[], Iterable[Document]]) -> Iterator[Document]:
        """Yields the documents of the part; one that straddles an end is cut exactly there.

        Args:
            read: called for one pass over all documents; for percentages, for two.
        """
        if self.is_all:
            yield from read()
            return
        scale = Fraction(1)
        if self.unit == '%':
            scale = Fraction(sum(len(document.text) for document in read()), 100)
        start = int(self.start * scale)
        stop = None if self.stop is None else int(self.stop * scale)
        size_of, cut = _UNITS[self.unit]
        begin = 0  # Units before this document.
        for document in read():
            if stop is not None and begin >= stop:
                return
            size = size_of(document.text)
            low, high = start - begin, size if stop is None else min(stop - begin, size)
            if low <= 0 and high == size:
                yield document
            elif low < high:
                yield document._replace(text=cut(document.text, max(low, 0), high))
            begin += size

    def apply_to_groups(self, read: Callable[[], Iterable[Any]], size: int) -> Iterator[Any]:
        """Yields what belongs to the groups of the part, which is in groups or percent of them.

        A percentage ends at int(groups * percent / 100). All is read, though the part may end earlier, so
        that what is wrong with pairs is wrong with each part of them.

        Args:
            read: called for one pass over all; for percentages, for two.
            size: so many in a row belong together: 2 of pairs.
        """
        scale = Fraction(1)
        if self.unit == '%':
            scale = Fraction(sum(1 for _ in read()) // size, 100)
        start = size * int(self.start * scale)
        stop = math.inf if self.stop is None else size * int(self.stop * scale)
        for number, item in enumerate(read()):
            if start <= number < stop:
                yield item


def parse(text: str, place: str) -> Slice:
    """Returns the slice of what stands between brackets, such as `800000w:1000000w`.

    Raises:
        InputError: it has another form, is empty, or mixes units.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise InputError(
            f"{place}: the part '[{text}]' is not [START:STOP]; write [100:200] in documents, or with "
            'a unit in percent [:90%], characters [:5000c] or words [:800000w].'
        )
    start, start_unit, stop, stop_unit = match.groups()
    units = {u for n, u in ((start, start_unit), (stop, stop_unit)) if n is not None}
    if len(units) > 1 or (start is None and start_unit) or (stop is None and stop_unit):
        raise InputError(f"{place}: the part '[{text}]' needs one unit, at each of its numbers.")
    unit = units.pop() if units else ''
    if unit != '%' and '.' in text:
        raise InputError(f"{place}: the part '[{text}]' must be in whole numbers.")
    part = Slice(Fraction(start or 0), None if stop is None else Fraction(stop), unit)
    if (part.stop is not None and part.start >= part.stop) or (unit == '%' and part.start >= 100):
        raise InputError(f"{place}: the part '[{text}]' is empty: it ends before it starts.")
    return part
