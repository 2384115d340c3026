"""Files that hold many documents in forms of their own: Parquet tables, and archives of the web (WARC)."""

from collections.abc import Iterator
from pathlib import Path

from lm.data import files
from lm.data.slices import Document, decoded
from lm.data.table import Fields, Record, code_values, text_of
from lm.errors import InputError, nearest

_ROWS = 1024  # Read at once.
_HTML = ('text/html', 'application/xhtml+xml')


def parquet(path: Path, chosen: Fields) -> Iterator[Record]:
    """Yields the rows of a table.

    Args:
        path: the file.
        chosen: its columns. Of one that holds lists of texts these are joined by spaces.

    Raises:
        InputError: it is no Parquet, or has no such column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"'{path}' is not a Parquet file: {_first_line(error)}.") from None
    with table:
        known = table.schema_arrow.names
        for name in (*chosen.names, *chosen.codes):
            if name not in known:
                raise InputError(f"'{path}' has no column '{name}'.{nearest(name, known)}")
        number = 0
        try:
            for batch in table.iter_batches(_ROWS, columns=[*chosen.names, *chosen.codes]):
                for row in batch.to_pylist():
                    number += 1
                    yield _record(row, chosen, number, f'{path}, row {number}')
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"'{path}' is damaged: {_first_line(error)}.") from None


def _record(row: dict[str, object], chosen: Fields, number: int, place: str) -> Record:
    found = [
        decoded('' if row[name] is None else text_of(row[name], name, place))
        for name in chosen.names
    ]
    codes = (code for name in chosen.codes for code in code_values(row[name], name, place))
    invalid = sum(value.invalid_bytes for value in found)
    return Record(number, tuple(value.text for value in found), invalid, tuple(codes))


def warc(path: Path, chosen: Fields) -> Iterator[Record]:
    """Yields the pages of an archive of the web: HTML of responses, text of conversions (WET).

    Args:
        path: the file, `.warc`, `.warc.gz`, `.wet.gz`.
        chosen: its text is `text`; codes may be `url` and `date`.

    Raises:
        InputError: it is no WARC, or another field is asked for.
    """
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError:
        raise InputError(f"'{path}' is read by warcio: pip install -e '.[corpus]'.") from None
    headers = {'url': 'WARC-Target-URI', 'date': 'WARC-Date', 'warc_id': 'WARC-Record-ID'}
    for name in chosen.codes:
        if name not in headers:
            raise InputError(f"'{path}' has no field '{name}'.{nearest(name, headers)}")
    if chosen.names != ('text',):
        raise InputError(f"'{path}' is of web pages, whose one field of text is '#text'.")
    number = 0
    with files.opened(path, unpack=False) as file:
        try:
            for record in ArchiveIterator(file):
                if not _is_page(record):
                    continue
                number += 1
                text = _decoded_page(record.content_stream().read(), record)
                if getattr(record.raw_stream, 'limit', 0):
                    raise InputError(f"'{path}' is cut off: its page {number} ends too soon.")
                told = ((name, record.rec_headers[headers[name]]) for name in chosen.codes)
                codes = tuple(f'{name}={value}' for name, value in told if value)
                yield Record(number, (text.text,), text.invalid_bytes, codes)
        except ArchiveLoadFailed as error:
            raise InputError(
                f"'{path}' is not a WARC file, or damaged: {_first_line(error)}."
            ) from None


def _is_page(record: object) -> bool:
    """Is it a page that was answered, or the text of one?"""
    if record.rec_type == 'conversion':
        return True
    if record.rec_type != 'response':
        return False
    told = record.rec_headers['WARC-Identified-Payload-Type'] or (
        record.http_headers and record.http_headers.get_header('Content-Type')
    )
    status = record.http_headers and record.http_headers.get_statuscode()
    return bool(told) and told.split(';')[0].strip().lower() in _HTML and status in (None, '200')


def _decoded_page(data: bytes, record: object) -> Document:
    """Decodes by the charset that the server told, where it is no UTF-8."""
    document = decoded(data)
    if not document.invalid_bytes or not record.http_headers:
        return document
    told = (record.http_headers.get_header('Content-Type') or '').partition('charset=')[2]
    try:
        return decoded(data.decode(told.strip('"\' ;').lower()))
    except (UnicodeDecodeError, LookupError):
        return document


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition('\n')[0].rstrip('.')
    return line if line.isprintable() else ascii(line[:60])
