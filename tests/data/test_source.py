import dataclasses
import gzip
import json
import lzma

import pytest

from lm.data import source
from lm.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Files of the same four lines, plain, packed, and as JSON."""
    text = 'one\r\ntwo words\n\n \nthree\n'
    (tmp_path / 'a.txt').write_bytes(text.encode())
    (tmp_path / 'b.txt.gz').write_bytes(gzip.compress(text.encode()))
    (tmp_path / 'c.txt.xz').write_bytes(lzma.compress(text.encode()))
    lines = [json.dumps({'text': t, 'body': t.upper(), 'label': 1}) for t in ('one', '', 'two')]
    (tmp_path / 'd.jsonl').write_text('\n'.join(lines) + '\n\n')
    (tmp_path / 'e.jsonl.gz').write_bytes(gzip.compress('\n'.join(lines).encode()))
    return tmp_path


def read(spec, data, **changes):
    return list(source.parse(spec, dataclasses.replace(data, **changes)).documents())


def test_what_a_document_is(folder, config_data):
    for name in ('a.txt', 'b.txt.gz', 'c.txt.xz'):
        spec = f'text:{folder / name}'
        assert read(spec, config_data, document='file') == ['one\r\ntwo words\n\n \nthree\n']
        assert read(spec, config_data, document='line') == ['one', 'two words', ' ', 'three']
        assert read(spec, config_data, document='paragraph') == ['one\ntwo words', 'three']


def test_how_a_file_is_unpacked_is_part_of_what_it_is(folder, config_data):
    packed = folder / 'b.txt.gz'
    plain = folder / 'b'
    plain.write_bytes(packed.read_bytes())
    one, other = (
        source.parse(f'text:{path}', config_data).fingerprint() for path in (packed, plain)
    )
    assert one != other


def test_globs_are_sorted_and_sliced(folder, config_data):
    one = (folder / 'a.txt').read_bytes().decode()
    assert read(f'text:{folder}/*.txt*', config_data) == [one] * 3
    assert read(f'text:{folder}/[ab].txt*[1:]', config_data) == [one]
    assert read(f'text:{folder}/a.txt[:3c]', config_data) == ['one']


def test_jsonl(folder, config_data):
    for name in ('d.jsonl', 'e.jsonl.gz'):
        assert read(f'jsonl:{folder / name}', config_data) == ['one', 'two']
        assert read(f'jsonl:{folder / name}#body[1:]', config_data) == ['TWO']


def test_fields_and_labels(tmp_path, config_data):
    record = {'a': ['one', 'two'], 'b': {'c': ['x', 'y']}, 'n': 3, 'ok': True}
    (tmp_path / 'd.jsonl').write_text(json.dumps(record) + '\n')
    (tmp_path / 'd.csv').write_text('"a, ""b""\nc",d,0.5\n\ne,f,1\n')

    def records(spec):
        return [document[::2] for document in source.parse(spec, config_data).records()]

    assert records(f'jsonl:{tmp_path}/d.jsonl#a') == [('one two', '')]
    assert records(f'jsonl:{tmp_path}/d.jsonl#b.c.1=n') == [('y', '3')]
    assert records(f'jsonl:{tmp_path}/d.jsonl#a+n,b.c.0') == [('one two 3', ''), ('x', '')]
    assert records(f'jsonl:{tmp_path}/d.jsonl#a,b.c.0=ok') == [('one two', ''), ('x', 'True')]
    assert records(f'csv:{tmp_path}/d.csv#0,1=2') == [
        *[('a, "b"\nc', ''), ('d', '0.5')],
        *[('e', ''), ('f', '1')],
    ]


def test_a_prefix_tells_tasks_apart(tmp_path, config_data):
    (tmp_path / 'd.tsv').write_text('a\tA\nb\tB\n')
    data = dataclasses.replace(config_data, prefix='upper: ')
    made = source.parse(f'tsv:{tmp_path}/d.tsv[1:]', data)
    assert list(made.documents()) == ['upper: b', 'B']
    plain = source.parse(f'tsv:{tmp_path}/d.tsv[1:]', config_data)
    assert made.fingerprint() != plain.fingerprint()
    with pytest.raises(InputError, match='is of single texts'):
        source.parse(f'text:{tmp_path}/d.tsv', data)


def test_data_dir(folder, config_data, monkeypatch):
    monkeypatch.setenv('LM_DATA_DIR', str(folder.parent))
    assert read(f'data:{folder.name}/a.txt[:3c]', config_data) == ['one']
    assert read(f'data:{folder.name}/e.jsonl.gz#body', config_data) == ['ONE', 'TWO']


def test_sources_can_be_read_again(folder, config_data):
    made = source.parse(f'text:{folder}/*.txt', config_data)
    assert list(made.documents()) == list(made.documents())


def test_invalid_utf8_is_counted_and_replaced(tmp_path, config_data):
    (tmp_path / 'bad.txt').write_bytes(
        b'\xef\xbb\xbfok \xff\xfe caf\xe9\n\xe2\x82 and \xf0\x9f\x98\x80\n'
    )
    (tmp_path / 'bad.jsonl').write_bytes(b'{"text": "a\xff"}\n{"text": "\\ud800 \\ud83d\\ude00"}\n')
    (lines,) = (source.parse(f'text:{tmp_path}/bad.txt', config_data).records(),)
    assert [document[:2] for document in lines] == [
        ('ok \ufffd\ufffd caf\ufffd\n\ufffd and 😀\n', 5)
    ]
    records = source.parse(f'jsonl:{tmp_path}/bad.jsonl', config_data).records()
    assert [document[:2] for document in records] == [('a\ufffd', 1), ('\ufffd 😀', 1)]


def test_several_sources_are_one_after_the_other(folder, config_data):
    one, two = f'text:{folder}/a.txt[:3c]', f'jsonl:{folder}/d.jsonl#body[1:]'
    (folder / 'pairs.tsv').write_text('a\tA\n\nb\tB\n')
    pairs, numbers = f'tsv:{folder}/pairs.tsv', 'builtin:numerals#en,de[test]'
    assert read(f'{one} + {two} + {one}', config_data) == ['one', 'TWO', 'one']
    both = source.parse(f'{pairs}[1:] + {pairs}', config_data)
    assert both.paired
    assert list(both.documents()) == ['b', 'B', 'a', 'A', 'b', 'B']
    assert read(f'{numbers} + {pairs}', config_data)[-4:] == ['a', 'A', 'b', 'B']
    specs = (one, two, f'{one} + {two}', f'{two} + {one}', f'{one} + {two} + {two}')
    prints = [source.parse(spec, config_data).fingerprint() for spec in specs]
    assert len(set(prints)) == len(specs)
    (folder / 'a.txt').write_text('changed')
    assert source.parse(specs[2], config_data).fingerprint() not in prints


def test_fingerprint_follows_the_content_not_the_path(folder, config_data):
    def fingerprint(spec, **changes):
        return source.parse(spec, dataclasses.replace(config_data, **changes)).fingerprint()

    (folder / 'moved').mkdir()
    (folder / 'moved' / 'x.txt').write_bytes((folder / 'a.txt').read_bytes())
    one = fingerprint(f'text:{folder}/a.txt')
    assert one == fingerprint(f'text:{folder}/moved/x.txt')
    others = [
        fingerprint(f'text:{folder}/*.txt*'),
        fingerprint(f'text:{folder}/a.txt[:50%]'),
        fingerprint(f'text:{folder}/a.txt[:50c]'),
        fingerprint(f'text:{folder}/a.txt', document='line'),
        fingerprint(f'jsonl:{folder}/d.jsonl#text'),
        fingerprint(f'jsonl:{folder}/d.jsonl#body'),
        fingerprint('builtin:pydocs[train]'),
        fingerprint('builtin:pydocs[valid]'),
    ]
    assert len({one, *others}) == 9
    (folder / 'a.txt').write_text('changed')
    assert fingerprint(f'text:{folder}/a.txt') not in {one, *others}


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('{}/a.txt', 'has no kind; write KIND:WHERE'),
        ('txt:{}/a.txt', "'txt' is not known. Did you mean 'text'"),
        ('text:', 'says no place'),
        ('text:{}/a.tx', "matches no file. Did you mean '.*a.txt'"),
        ('text:{}/nowhere/*', 'matches no file'),
        ('text:{}/a.txt#body', 'has no field'),
        ('text:{}/a.txt]', "no '\\[' opens"),
        ('text:{}/a.txt[5]', r"the part '\[5\]' is not"),
        ('text:{}/empty.txt', 'holds no text'),
        ('text:{}/a.txt[10:]', 'holds no text'),
        ('text:{}/damaged.gz', 'is damaged|cannot be read'),
        ('text:{}/cut.txt.gz', 'cut.txt.gz.* is damaged'),
        ('text:{}/cut.txt.xz', 'cut.txt.xz.* is damaged'),
        ('jsonl:{}/d.jsonl#txt', "d.jsonl:1 has no field 'txt'. Did you mean 'text'"),
        ('jsonl:{}/deep.jsonl', "deep.jsonl:1: the field 'text' is not text but dict"),
        ('tsv:{}/d.tsv#0=', 'is not a text'),
        ('tsv:{}/d.tsv#0+,1', 'is not a text'),
        ('tsv:{}/d.tsv#0=2', "d.tsv:2: the label '2' is empty"),
        ('csv:{}/d.tsv#a', "has no column 'a'"),
        ('jsonl:{}/a.txt', 'a.txt:1 is not JSON'),
        ('jsonl:{}/list.jsonl', 'list.jsonl:2 is not a JSON object'),
        ('builtin:pydoc', "Did you mean 'pydocs'"),
        ('builtin:pydocs[valit]', "Did you mean 'valid'"),
        (
            'text:{0}/a.txt + builtin:numerals',
            "numerals' is of pairs and '.*a.txt' of single texts",
        ),
        ('text:{0}/a.txt + text:{0}/empty.txt', "empty.txt' holds no text"),
        ('text:{0}/a.txt + text:{0}/b', "source 'text:.*/b' matches no file"),
        ('text:{0}/a.txt + ', "source '' has no kind"),
        ('data:nowhere/a.txt', 'Set LM_DATA_DIR to a folder that holds NAME/FILE'),
    ],
)
def test_bad_sources_get_one_line(spec, message, folder, config_data):
    (folder / 'empty.txt').write_text('')
    (folder / 'list.jsonl').write_text('{"text": "a"}\n["text"]\n')
    (folder / 'deep.jsonl').write_text('{"text": {"a": 1}}\n')
    (folder / 'd.tsv').write_text('a\tb\tc\nd\te\t \n')
    (folder / 'damaged.gz').write_bytes(b'not packed')
    for name in ('b.txt.gz', 'c.txt.xz'):
        cut = (folder / name).with_name(name.replace('b', 'cut').replace('c.', 'cut.'))
        cut.write_bytes((folder / name).read_bytes()[:-6])
    with pytest.raises(InputError, match=message) as raised:
        read(spec.format(folder), config_data)
    assert '\n' not in str(raised.value)


def test_unknown_document_rule(folder, config_data):
    with pytest.raises(InputError, match="config.data.document = 'lines'.*Did you mean 'line'"):
        read(f'text:{folder}/a.txt', config_data, document='lines')


def test_tinyshakespeare_is_cut_as_in_nanogpt(shared_data, config_data):
    (whole,) = read('data:tinyshakespeare/input.txt.gz', config_data)
    (train,) = read('data:tinyshakespeare/input.txt.gz[:90%]', config_data)
    (valid,) = read('data:tinyshakespeare/input.txt.gz[90%:]', config_data)
    assert len(whole) == 1_115_394
    assert train == whole[: int(len(whole) * 0.9)]
    assert valid == whole[int(len(whole) * 0.9) :]


def test_brown_is_cut_by_words(shared_data, config_data):
    sizes = {':800000w': 800_000, '800000w:1000000w': 200_000, '1000000w:': 161_192}
    parts = {}
    for part, size in sizes.items():
        spec = f'data:brown/brown.txt.gz[{part}]'
        parts[part] = read(spec, config_data, document='line')
        assert sum(len(text.split()) for text in parts[part]) == size
    whole = read('data:brown/brown.txt.gz', config_data, document='line')
    assert ''.join(sum(parts.values(), [])) == ''.join(whole)
