import dataclasses
import gzip
import lzma

import numpy as np
import pytest

from lm import tokenizer
from lm.data import blocks, features, parallel, source
from lm.errors import InputError

EN = ['A dog.', 'Two cats sleep.', 'It is late, "so" they say.', 'No.']
DE = ['Ein Hund.', 'Zwei Katzen schlafen.', 'Es ist spät, sagt man.', 'Nein.']
PAIRS = [text for pair in zip(EN, DE, strict=True) for text in pair]


def lines(texts):
    return ''.join(text + '\n' for text in texts).encode()


@pytest.fixture
def folder(tmp_path):
    """The same four pairs in several forms."""
    (tmp_path / 'a.en').write_bytes(lines(EN))
    (tmp_path / 'a.de').write_bytes(lines(DE).replace(b'\n', b'\r\n').removesuffix(b'\r\n'))
    (tmp_path / 'b.en.gz').write_bytes(gzip.compress(b'\xef\xbb\xbf' + lines(EN)))
    (tmp_path / 'b.de.gz').write_bytes(gzip.compress(lines(DE)))
    (tmp_path / 'c.de.xz').write_bytes(lzma.compress(lines(DE)))
    rows = [f'{n}\t{a}\t{b}' for n, (a, b) in enumerate(zip(EN, DE, strict=True))]
    (tmp_path / 'd.tsv').write_bytes(lines([*rows[:2], '', *rows[2:]]))
    (tmp_path / 'e.tsv.gz').write_bytes(gzip.compress(lines(['id\tenglish\tgerman', *rows])))
    return tmp_path


def read(spec, data):
    made = source.parse(spec, data)
    assert made.paired
    texts = list(made.documents())
    assert texts == list(made.documents())
    return texts


@pytest.mark.parametrize(
    'spec',
    [
        'parallel:{}/a.{en,de}',
        'parallel:{}/b.{en,de}.gz',
        'parallel:{}/a.en,{}/c.de.xz',
        'tsv:{}/d.tsv#1,2',
        'tsv:{}/e.tsv.gz#english,german',
        'data:a.{en,de}',
        'data:b.{en,de}',
        'data:b.en,c.de',
        'data:d.tsv#1,2',
        'data:e.tsv#english,german',
    ],
)
def test_the_same_pairs_in_every_form(spec, folder, config_data, monkeypatch):
    monkeypatch.setenv('LM_DATA_DIR', str(folder))
    assert read(spec.replace('{}', str(folder)), config_data) == PAIRS


def test_the_first_name_is_the_source_side(folder, config_data):
    turned = [text for pair in zip(DE, EN, strict=True) for text in pair]
    assert read(f'parallel:{folder}/a.{{de,en}}', config_data) == turned
    assert read(f'tsv:{folder}/d.tsv#2,1', config_data) == turned
    assert read(f'tsv:{folder}/e.tsv.gz#german,english', config_data) == turned


def test_several_tables_one_after_the_other(folder, config_data):
    (folder / 'f.tsv').write_bytes((folder / 'd.tsv').read_bytes())
    assert read(f'tsv:{folder}/?.tsv#1,2', config_data) == PAIRS * 2


@pytest.mark.parametrize(
    ('part', 'expected'),
    [
        (':', [0, 1, 2, 3]),
        ('1:3', [1, 2]),
        ('3:', [3]),
        (':50%', [0, 1]),
        (':74%', [0, 1]),
        ('75%:', [3]),
    ],
)
def test_slices_count_pairs(part, expected, folder, config_data):
    texts = read(f'parallel:{folder}/a.{{en,de}}[{part}]', config_data)
    assert texts == [text for i in expected for text in (EN[i], DE[i])]


def test_no_part_hides_what_is_wrong(folder, config_data):
    (folder / 'a.de').write_bytes(lines(DE[:3]))
    with pytest.raises(InputError, match='line 4 is in'):
        read(f'parallel:{folder}/a.{{en,de}}[:1]', config_data)


def test_fingerprints(folder, config_data):
    def fingerprint(spec):
        return source.parse(spec.replace('{}', str(folder)), config_data).fingerprint()

    specs = ['parallel:{}/a.{en,de}', 'parallel:{}/a.{de,en}', 'parallel:{}/a.{en,de}[:2]']
    specs += ['tsv:{}/d.tsv#0,1', 'tsv:{}/d.tsv#1,0', 'text:{}/d.tsv']
    prints = [fingerprint(spec) for spec in specs]
    assert len(set(prints)) == len(prints)
    assert fingerprint('parallel:{}/a.en,{}/a.de') == prints[0]
    made = source.parse(f'text:{folder}/d.tsv', config_data)
    assert made.fingerprint() != dataclasses.replace(made, paired=True).fingerprint()


@pytest.mark.parametrize('block', [8, 30, 1 << 20])
def test_tokens_of_pairs(block, folder, config_data, monkeypatch):
    monkeypatch.setattr(blocks, 'SIZE', block)
    texts = [*PAIRS[:3], 'x' * 50]  # No target in some of the blocks.
    (folder / 'a.en').write_bytes(lines(texts[::2]))
    (folder / 'a.de').write_bytes(lines(texts[1::2]))
    made = source.parse(f'parallel:{folder}/a.{{en,de}}', config_data)
    for _ in range(2):  # Made, then from the cache.
        split = features.tokenize(made, tokenizer.Bytes(), config_data, 'train')
        assert split.paired
        assert split.num_documents == 4
        documents = [split.document(i).tolist() for i in range(4)]
        assert documents == [[1, *tokenizer.Bytes().encode(text), 2] for text in texts]
        # Of what is predicted only.
        assert split.num_bytes == sum(len(text.encode()) for text in texts[1::2])
        assert split.num_words == sum(len(text.split()) for text in texts[1::2])
        assert split.num_targets == sum(len(text.encode()) + 1 for text in texts[1::2])


def test_other_splits_are_not_paired(folder, config_data):
    made = source.parse(f'text:{folder}/a.en', config_data)
    assert not made.paired
    assert not features.tokenize(made, tokenizer.Bytes(), config_data, 'train').paired


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        (
            'parallel:{}/long.en,{}/a.de',
            "long.en' has 6 lines and '.*a.de' has 4; line 5 is in '.*long.en' only",
        ),
        (
            'parallel:{}/a.en,{}/long.en',
            "long.en' has 6 lines and '.*a.en' has 4; line 5 is in '.*long.en' only",
        ),
        ('parallel:{}/a.en,{}/hole.de', "line 3 of '.*hole.de' is empty"),
        ('parallel:{}/hole.de,{}/a.en', "line 3 of '.*hole.de' is empty"),
        ('parallel:{}/a.{en,dd}', "matches no file. Did you mean '.*a.de'"),
        ('parallel:{}/a.en', 'does not name two files; write PATH.{en,de}, or A,B'),
        ('parallel:{}/a.{en,de,fr}', 'does not name two files'),
        ('parallel:{}/a.{en}', 'does not name two files'),
        ('parallel:{}/a.en,{}/?.de*', 'matches 3 files; a side is one file'),
        ('parallel:{}/a.{en,de}#text', 'has no field'),
        ('parallel:{}/a.{en,de}[:5c]', r"the part '\[:5c\]' would cut pairs apart"),
        ('parallel:{}/a.{en,de}[:5w]', 'would cut pairs apart'),
        ('parallel:{}/a.{en,de}[4:]', 'holds no text'),
        ('parallel:{}/none.en,{}/none.en', 'holds no text'),
        ('parallel:{}/none.en,{}/a.de', "none.en' has 0; line 1 is in '.*a.de' only"),
        ('tsv:{}/d.tsv#1,2,3', 'is not a text'),
        ('tsv:{}/d.tsv#1,3', 'd.tsv:1 has 3 columns separated by tabs, and none with the number 3'),
        (
            'tsv:{}/short.tsv',
            'short.tsv:2 has 1 column separated by tabs, and none with the number 1',
        ),
        ('tsv:{}/hole.tsv', "line 2 of field '1' of '.*hole.tsv' is empty"),
        (
            'tsv:{}/e.tsv.gz#english,germann',
            "e.tsv.gz' has no column 'germann'. Did you mean 'german'",
        ),
        ('tsv:{}/none.en#english,german', "has no column 'english'"),
        ('tsv:{}/e.tsv.gz[:5w]', 'would cut pairs apart'),
        ('data:nowhere/a.{en,de}', 'Set LM_DATA_DIR to a folder that holds NAME/FILE'),
    ],
)
def test_bad_pairs_get_one_line(spec, message, folder, config_data):
    (folder / 'long.en').write_bytes(lines([*EN, 'one', 'two']))
    (folder / 'hole.de').write_bytes(lines([*DE[:2], ' ', DE[3]]))
    (folder / 'none.en').write_bytes(b'')
    (folder / 'short.tsv').write_bytes(b'a\tb\nc\nd\te\n')
    (folder / 'hole.tsv').write_bytes(b'a\tb\nc\t \nd\te\n')
    with pytest.raises(InputError, match=message) as raised:
        read(spec.replace('{}', str(folder)), config_data)
    assert '\n' not in str(raised.value)


# --- sides that have slipped -----------------------------------------------------------------------


def text_of(path):
    return gzip.decompress(path.read_bytes()).decode().splitlines()


@pytest.fixture(scope='module')
def captions(shared_data):
    """Lines of Multi30k, 29,000 of each language."""
    return {k: text_of(shared_data / f'multi30k/train.{k}.gz') for k in ('en', 'de', 'fr')}


@pytest.mark.first_quick
@pytest.mark.parametrize(
    'spec',
    [
        f'multi30k/{part}.{{{a},{b}}}'
        for part in ('train', 'val', 'test_2016_flickr')
        for a, b in (('en', 'de'), ('en', 'fr'), ('de', 'fr'), ('de', 'en'))
    ]
    + [
        f'tatoeba_en_zh/{part}.tsv#{columns}'
        for part in ('train', 'valid', 'test')
        for columns in ('0,1', '1,0')
    ],
)
def test_real_pairs_pass(spec, shared_data, config_data, monkeypatch):
    monkeypatch.setattr(parallel, '_EVIDENCE', 10.0)  # By far.
    assert len(read(f'data:{spec}', config_data)) >= 2000


def slipped(captions, side, line, lost=1, languages=('en', 'de')):
    """Pairs of texts of which one side lacks `lost` lines from `line` on, and has them at its end."""
    both = [list(captions[k]) for k in languages]
    both[side] = both[side][:line] + both[side][line + lost :] + both[side][line : line + lost]
    return both


def slip_of(sources, targets):
    lengths = [np.array([len(text) for text in side]) for side in (sources, targets)]
    keys = [np.array([hash(text) for text in side]) for side in (sources, targets)]
    return parallel.slip(lengths, keys)


@pytest.mark.first_quick
@pytest.mark.parametrize('languages', [('en', 'de'), ('en', 'fr')])
@pytest.mark.parametrize('lost', [1, 3, 16])
def test_a_lost_line_is_found(languages, lost, captions):
    for side in (0, 1):
        for line in (0, 20, 5000, 14_500, 28_000):
            found = slip_of(*slipped(captions, side, line, lost, languages))
            assert found is not None, (side, line)
            # Where the second side lost lines, those of the first have no partner before the shift begins.
            assert abs(found[0] - (line + lost * side)) < 30, (side, line, found)
            assert found[1] == (lost if side == 0 else -lost)


def test_a_lost_line_is_found_beside_other_scripts(shared_data):
    rows = [line.split('\t') for line in text_of(shared_data / 'tatoeba_en_zh/train.tsv.gz')]
    some = np.random.default_rng(0).permutation(len(rows))  # The file is sorted by length.
    both = {k: [rows[i][side] for i in some] for side, k in enumerate(('en', 'de'))}
    assert slip_of(both['en'], both['de']) is None
    line, shift = slip_of(*slipped(both, 0, 9000))
    assert abs(line - 9000) < 30
    assert shift == 1


def test_a_lost_line_is_refused(captions, tmp_path, config_data):
    sources, targets = slipped(captions, 1, 20_000)
    (tmp_path / 'a.en').write_bytes(lines(sources))
    (tmp_path / 'a.de').write_bytes(lines(targets))
    with pytest.raises(InputError, match='from about line 20,0.. on, .* 1 further up'):
        read(f'parallel:{tmp_path}/a.{{en,de}}', config_data)
    (tmp_path / 'a.de').write_bytes(lines(targets[:-1]))
    with pytest.raises(InputError, match='line 29,000 is in .* part at about line 20,0..'):
        read(f'parallel:{tmp_path}/a.{{en,de}}', config_data)


def test_what_is_no_evidence(captions, monkeypatch):
    rng = np.random.default_rng(0)
    en, de = captions['en'], captions['de']
    some = rng.permutation(len(en))
    assert slip_of(en, [de[i] for i in some]) is None  # Lengths that tell nothing.
    assert slip_of(en[:-1], en[1:]) is None  # A dialogue: the answer to each text is the next one.
    assert slip_of(['same'] * 500, ['gleich'] * 500) is None
    assert slip_of(*slipped({k: v[:90] for k, v in captions.items()}, 0, 10)) is None  # Too few.
    monkeypatch.setattr(parallel, '_EVIDENCE', 10.0)
    for side in (en, de):  # Neighbours alike.
        order = np.argsort([len(text) for text in side], kind='stable')
        assert slip_of([en[i] for i in order], [de[i] for i in order]) is None


def test_random_pairs_are_not_refused():
    rng = np.random.default_rng(0)
    for _ in range(100):
        x, y = rng.lognormal(3, 0.7, [2, 3000]).astype(int) + 1
        keys = np.arange(6000).reshape(2, 3000)
        assert parallel.slip([x, y], keys) is None
        assert parallel.slip([x, x // 2 + 1], keys) is None
