"""Our tokenizers as tokenizer.json: the same ids of any text, and the special ones where ours are."""

import itertools
import json

import pytest
from tokenizers import Tokenizer as Theirs

import lm
from lm import config as configs
from lm import pretrained_tokenizer, tokenizer, vocabulary
from lm.data import pydocs
from lm.pretrained import tokenizers

TEXTS = (
    '',
    ' ',
    'the word and  two spaces\n\n\tdef f(x):  # tab',
    ' leading, and trailing ',
    'naïve café, Größe, 中文字符。日本語 🙂 ℵ ж',
    'a <mask> is text',
    '<BT> a symbol <BT>',
)
KINDS = {'bpe': ('<BT>',), 'unigram': ('<BT>',), 'bytes': (), 'chars': ()}


@pytest.fixture(scope='module')
def text():
    texts = itertools.islice(pydocs.documents('train'), 400)
    return '\n'.join(texts)[:200_000] + 'naïve 中文'


@pytest.mark.parametrize('kind', KINDS)
def test_ids_are_the_same(kind, text, tmp_path):
    options = {
        'kind': kind,
        'vocab_size': 700,
        'symbols': KINDS[kind],
        'sentinels': 3,
        'mask': True,
    }
    config = configs.parse(lm.get_config('base', tokenizer=options))
    ours = tokenizer.build(config.tokenizer, lambda: [text])
    tokenizers.save_pretrained(ours, config, tmp_path)
    theirs = Theirs.from_file(str(tmp_path / 'tokenizer.json'))
    theirs.encode_special_tokens = True
    pieces = [text[start : start + 90] for start in range(0, 60_000, 601)]
    for part in (*TEXTS, *pieces):
        ids = ours.encode(part).tolist()
        found = theirs.encode(part, add_special_tokens=False).ids
        assert theirs.decode(found) == ours.decode(ids), part
        # Of two segmentations with one score either is right.
        assert found == ids or (kind == 'unigram' and sorted(found) == sorted(ids)), part
    ids = vocabulary.build(ours, config.tokenizer)
    names = [f'<extra_id_{n}>' for n in range(3)]
    assert [theirs.token_to_id(name) for name in names] == list(ids.sentinels)
    assert theirs.token_to_id('<mask>') == ids.mask
    fields = json.loads((tmp_path / 'tokenizer_config.json').read_text())
    roles = ('pad', 'bos', 'eos', 'unk')
    assert [theirs.token_to_id(fields[f'{role}_token']) for role in roles] == [0, 1, 2, 3]


@pytest.mark.parametrize('kind', KINDS)
def test_a_tokenizer_comes_back(kind, text, tmp_path):
    options = {'kind': kind, 'vocab_size': 700, 'mask': True, 'sentinels': 2}
    config = configs.parse(lm.get_config('base', tokenizer=options))
    ours = tokenizer.build(config.tokenizer, lambda: [text])
    tokenizers.save_pretrained(ours, config, tmp_path)
    again = pretrained_tokenizer.from_pretrained(tmp_path)
    size = ours.vocab_size
    expected = tokenizer.Specials(mask=size, sentinels=(size + 1, size + 2))
    assert (again.specials, again.vocab_size) == (expected, size + 3)
    assert again.encode('the word').tolist() == ours.encode('the word').tolist()
    (tmp_path / 'second').mkdir()
    tokenizers.save_pretrained(again, config, tmp_path / 'second')
    first, second = (
        Theirs.from_file(str(folder / 'tokenizer.json'))
        for folder in (tmp_path, tmp_path / 'second')
    )
    assert first.get_vocab() == second.get_vocab()
    for part in TEXTS:
        assert first.encode(part).ids == second.encode(part).ids
    first, second = (
        json.loads((folder / 'tokenizer_config.json').read_text())
        for folder in (tmp_path, tmp_path / 'second')
    )
    assert first == second
