import gzip

import pyarrow
import pyarrow.parquet
import pytest

from lm.data import source
from lm.errors import InputError


def records(spec, data):
    return [(d.text, d.codes) for d in source.parse(spec, data).records()]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / 'a.parquet'
    columns = {
        'text': ['one', '', None, 'four'],
        'parts': [['a', 'b'], [], ['c'], ['d']],
        'genre': ['x', None, 'y', 'z'],
        'number': [1, 2, 3, 4],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def test_columns_of_parquet(table, config_data):
    assert records(f'parquet:{table}', config_data) == [('one', ()), ('four', ())]
    assert records(f'parquet:{table}#parts', config_data)[0] == ('a b', ())
    found = records(f'parquet:{table}#text{{genre}}', config_data)
    assert found == [('one', ('genre=x',)), ('four', ('genre=z',))]
    labelled = source.parse(f'parquet:{table}#parts=number', config_data).records()
    assert [(d.text, d.label) for d in labelled] == [('a b', '1'), ('c', '3'), ('d', '4')]


def test_what_is_no_parquet_is_named(table, config_data):
    with pytest.raises(InputError, match="no column 'txt'.* Did you mean 'text'"):
        records(f'parquet:{table}#txt', config_data)
    data = table.read_bytes()
    table.write_bytes(data[:-20])
    with pytest.raises(InputError, match=r"a.parquet' is not a Parquet file"):
        records(f'parquet:{table}', config_data)


def warc_record(url, body, kind, status, type):
    """A record as the standard has it, packed by itself."""
    if type == 'response':
        body = f'HTTP/1.0 {status}\r\nContent-Type: {kind}\r\n\r\n'.encode() + body
    head = (
        f'WARC/1.0\r\nWARC-Type: {type}\r\nWARC-Target-URI: {url}\r\nWARC-Record-ID: <urn:{url}>\r\n'
        f'WARC-Date: 2024-01-01T00:00:00Z\r\nContent-Type: application/http; msgtype=response\r\n'
        f'Content-Length: {len(body)}\r\n\r\n'
    )
    return gzip.compress(head.encode() + body + b'\r\n\r\n')


@pytest.fixture
def archive(tmp_path):
    pytest.importorskip('warcio')
    latin, html = 'text/html; charset=iso-8859-1', 'text/html'
    pages = [
        ('http://a.org/', '<p>caf\u00e9</p>'.encode('latin-1'), latin, '200 OK', 'response'),
        ('http://a.org/b.png', b'no text', 'image/png', '200 OK', 'response'),
        ('http://a.org/c', b'<p>gone</p>', html, '404 Not Found', 'response'),
        ('http://a.org/d', '<p>\u4f60</p>'.encode(), html, '200 OK', 'response'),
        ('http://a.org/e', b'plain text', '', '', 'conversion'),
    ]
    path = tmp_path / 'a.warc.gz'
    path.write_bytes(b''.join(warc_record(*page) for page in pages))
    return path


def test_pages_of_an_archive(archive, config_data):
    texts = ['<p>caf\u00e9</p>', '<p>\u4f60</p>', 'plain text']
    assert [text for text, _ in records(f'warc:{archive}', config_data)] == texts
    found = records(f'warc:{archive}#text{{url}}', config_data)
    assert found[0] == (texts[0], ('url=http://a.org/',))


def test_an_archive_that_is_cut_off_is_named(archive, tmp_path, config_data):
    whole = b''.join(gzip.decompress(part) for part in [archive.read_bytes()])
    path = tmp_path / 'b.warc'
    path.write_bytes(whole)
    assert len(records(f'warc:{path}', config_data)) == 3
    path.write_bytes(whole[:-10])
    with pytest.raises(InputError, match=r"b.warc' is cut off: its page 3 ends too soon"):
        records(f'warc:{path}', config_data)


def test_what_is_no_archive_is_named(archive, tmp_path, config_data):
    with pytest.raises(InputError, match="no field 'urls'.* Did you mean 'url'"):
        records(f'warc:{archive}#text{{urls}}', config_data)
    (tmp_path / 'b.warc').write_text('nothing of the kind\n' * 9)
    with pytest.raises(InputError, match='is not a WARC file'):
        records(f'warc:{tmp_path}/b.warc', config_data)


def test_zst_is_read_whole_or_not_at_all(tmp_path, config_data):
    codec = pyarrow.Codec('zstd')
    frame = codec.compress(b'one\ntwo\n' * 1000, asbytes=True)
    path = tmp_path / 'a.txt.zst'
    path.write_bytes(frame + codec.compress(b'three\n', asbytes=True))
    assert len(records(f'lines:{path}', config_data)) == 2001
    path.write_bytes(frame[:-9])
    with pytest.raises(InputError, match=r"a.txt.zst' is damaged"):
        records(f'lines:{path}', config_data)
    path.write_bytes(b'not packed at all')
    with pytest.raises(InputError, match=r"a.txt.zst' is damaged"):
        records(f'lines:{path}', config_data)


def test_lines_and_paragraphs_have_kinds_of_their_own(tmp_path, config_data):
    (tmp_path / 'a.txt').write_text('one\ntwo\n\nthree\n')
    for kind, texts in {
        'lines': ['one', 'two', 'three'],
        'paragraphs': ['one\ntwo', 'three'],
        'text': ['one\ntwo\n\nthree\n'],
    }.items():
        assert [text for text, _ in records(f'{kind}:{tmp_path}/a.txt', config_data)] == texts
