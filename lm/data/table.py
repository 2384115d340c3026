"""Files of records, a line each: columns between tabs (TSV) or commas (CSV), or JSON objects.

What is read of a record is written behind a `#`: `#text` a text, `#en,de` a pair of texts, and with
`=LABEL` at its end a label too: `#sentence=label`, `#premise,hypothesis=gold`. Fields with a `+` between
them are read as one text: `#question+context,answer`. Fields in braces behind it
hold control codes (see `lm.codes`): `#text{genre,title}`.
"""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lm.data.parallel import Pair
from lm.data.slices import Document, decoded
from lm.errors import InputError, nearest


class Record(NamedTuple):
    """The line that a record stands on, from 1, its fields in the order asked for, and bad bytes.

    And its codes, as `FIELD=VALUE`; of an empty field there are none.
    """

    line: int
    values: tuple[str, ...]
    invalid_bytes: int
    codes: tuple[str, ...] = ()


class Fields(NamedTuple):
    """Names, or numbers from 0, of the fields that are read.

    Attributes:
        texts: one, or two of pairs.
        label: '' for none.
        codes: those that hold control codes.
    """

    texts: tuple[str, ...]
    label: str
    codes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Those that must hold something, the label last."""
        names = tuple(name for text in self.texts for name in text.split('+'))
        return (*names, self.label) if self.label else names

    def joined(self, record: Record) -> tuple[str, ...]:
        """Returns the texts of a record."""
        values = iter(record.values)
        return tuple(' '.join(next(values) for _ in text.split('+')) for text in self.texts)


def fields(text: str, place: str) -> Fields:
    """Returns what `A`, `A,B`, `A=LABEL` or `A,B=LABEL` names.

    Raises:
        InputError: it has another form.
    """
    names, equals, label = text.partition('=')
    texts = tuple(names.split(','))
    if len(texts) > 2 or not all('+'.join(texts).split('+')) or bool(equals) != bool(label):
        raise InputError(
            f"{place}: '#{text}' is not a text '#A', a pair '#A,B', or one of them with a label: "
            "'#A,B=LABEL'."
        )
    return Fields(texts, label)


_LONGEST = (1 << 31) - 1  # Characters of a field of CSV; Python's own limit is 131,072.

# --- forms: lines of a file -> records -------------------------------------------------------------


def tsv(lines: Iterator[Document], chosen: Fields, path: Path) -> Iterator[Record]:
    """Reads columns between tabs; quotes are text as any other."""
    rows = (
        (number, line.text.split('\t'), line.invalid_bytes) for number, line in enumerate(lines, 1)
    )
    return _columns(rows, chosen, path, 'tabs')


def comma_separated(lines: Iterator[Document], chosen: Fields, path: Path) -> Iterator[Record]:
    """Reads columns between commas; one that holds a comma, a quote or a newline stands in quotes."""
    invalid_bytes = 0
    csv.field_size_limit(_LONGEST)

    def counted() -> Iterator[str]:
        nonlocal invalid_bytes
        for line in lines:
            invalid_bytes += line.invalid_bytes
            yield line.text + '\n'

    def rows() -> Iterator[tuple[int, list[str], int]]:
        nonlocal invalid_bytes
        reader = csv.reader(counted(), strict=True)
        try:
            for cells in reader:
                yield reader.line_num, cells, invalid_bytes
                invalid_bytes = 0
        except csv.Error as error:
            raise InputError(f'{path}:{reader.line_num} is not CSV: {error}.') from None

    return _columns(rows(), chosen, path, 'commas')


def _columns(
    rows: Iterator[tuple[int, list[str], int]], chosen: Fields, path: Path, between: str
) -> Iterator[Record]:
    """Yields the columns with these numbers, from 0, or names, which the first line then gives."""
    rows = (row for row in rows if any(cell.strip() for cell in row[1]))
    names = chosen.names + chosen.codes
    if all(name.isdecimal() for name in names):
        places = [int(name) for name in names]
    else:
        _, header, _ = next(rows, (0, [], 0))
        for name in names:
            if name not in header:
                raise InputError(f"'{path}' has no column '{name}'.{nearest(name, header)}")
        places = [header.index(name) for name in names]
    for number, cells, invalid_bytes in rows:
        if len(cells) <= max(places):
            raise InputError(
                f'{path}:{number} has {len(cells)} {"column" if len(cells) == 1 else "columns"} '
                f'separated by {between}, and none with the number {max(places)} (the first is 0).'
            )
        found = [cells[place] for place in places]
        values, held = found[: len(chosen.names)], found[len(chosen.names) :]
        codes = [f'{n}={v.strip()}' for n, v in zip(chosen.codes, held, strict=True) if v.strip()]
        yield Record(number, tuple(values), invalid_bytes, tuple(codes))


def json_lines(lines: Iterator[Document], chosen: Fields, path: Path) -> Iterator[Record]:
    """Reads JSON objects. `a.b.0` is a field in a field; a list of texts is joined by spaces.

    A list of codes is several, and null is none.
    """
    names = chosen.names
    for number, line in enumerate(lines, 1):
        if not line.text.strip():
            continue
        place = f'{path}:{number}'
        try:
            record = json.loads(line.text)
        except (ValueError, RecursionError) as error:
            raise InputError(f'{place} is not JSON: {error}.') from None
        if not isinstance(record, dict):
            raise InputError(f'{place} is not a JSON object with a field {names[0]!r}.')
        found = [decoded(text_of(_field(record, name, place), name, place)) for name in names]
        invalid_bytes = line.invalid_bytes + sum(value.invalid_bytes for value in found)
        codes = tuple(
            code
            for name in chosen.codes
            for code in code_values(_field(record, name, place), name, place)
        )
        yield Record(number, tuple(value.text for value in found), invalid_bytes, codes)


def _field(record: dict[str, Any], name: str, place: str) -> Any:
    found: Any = record
    for key in [name] if name in record else name.split('.'):
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            known = found if isinstance(found, dict) else ()
            raise InputError(f'{place} has no field {name!r}.{nearest(key, known)}')
    return found


def code_values(found: Any, name: str, place: str) -> Iterator[str]:
    """Yields `NAME=VALUE` of what a field holds; of a list several, of null none."""
    for value in found if isinstance(found, list) else [found]:
        if value is not None and (text := decoded(text_of(value, name, place)).text.strip()):
            yield f'{name}={text}'


def text_of(found: Any, name: str, place: str) -> str:
    """Returns what a field holds as text; a list of texts is joined by spaces."""
    if isinstance(found, list) and all(isinstance(value, str) for value in found):
        return ' '.join(found)
    if isinstance(found, bool | int | float):
        return str(found)
    if not isinstance(found, str):
        raise InputError(f'{place}: the field {name!r} is not text but {type(found).__name__}.')
    return found


# (lines, fields, path for messages) -> records.
FORMS: dict[str, Callable[[Iterator[Document], Fields, Path], Iterator[Record]]] = {
    'tsv': tsv,
    'csv': comma_separated,
    'jsonl': json_lines,
}


# --- documents -------------------------------------------------------------------------------------


def texts(records: Iterator[Record], chosen: Fields, path: Path) -> Iterator[Document]:
    """Yields one document a record, with its label."""
    for record in records:
        label = _label(record, chosen, path)
        (text,) = chosen.joined(record)
        yield Document(text, record.invalid_bytes, label, record.codes)


def pairs(records: Iterator[Record], chosen: Fields, path: Path) -> Iterator[Pair]:
    """Yields the two documents of each record; the second has its label."""
    for record in records:
        label = _label(record, chosen, path)
        source, target = chosen.joined(record)
        yield Pair(record.line, Document(source, record.invalid_bytes), Document(target, 0, label))


def _label(record: Record, chosen: Fields, path: Path) -> str:
    label = record.values[-1].strip() if chosen.label else ''
    if chosen.label and not label:
        raise InputError(f"{path}:{record.line}: the label '{chosen.label}' is empty.")
    return label
