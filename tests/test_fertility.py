"""Fertility and coverage: by hand, as sums, and over all kinds of tokenizers, imported ones among them."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models

from lm import fertility, tokenizer
from tests.test_tokenizer import TEXT, make, random_texts, train_as_others_do, trained_elsewhere

ZH = '一日一善，花好月圆。\n'


def of(made, *texts):
    return fertility.facts(made, fertility.count(made, texts))


def test_words_by_hand():
    made = make('words', 'the cat sat\nthe cat\n', vocab_size=4 + 256 + 2 + 3)  # the, cat, sat
    found = of(made, 'the cat sat.\n', 'é cat')
    assert found['texts'] == 2
    assert (found['characters'], found['bytes']) == (13 + 5, 13 + 6)
    assert found['words'] == 4 + 2  # 'sat.' is two.
    assert found['spaced_words'] == 3 + 2
    # the| cat| sat|.|\n and two bytes of é| cat
    assert found['tokens'] == 5 + 3
    assert found['tokens_per_word'] == 8 / 6
    assert found['tokens_per_spaced_word'] == 8 / 5
    assert (found['tokens_per_byte'], found['bytes_per_token']) == (8 / 19, 19 / 8)
    assert found['characters_per_token'] == 18 / 8
    assert found['byte_rate'] == 3 / 8  # '.' too is a byte that the vocabulary lacks.
    assert found['unknown_rate'] == 0
    assert found['tokens_of_words'] == {1: 5, 2: 1}
    assert found['word_coverage'] == 5 / 6
    assert found['different_word_coverage'] == 4 / 5
    assert found['vocabulary_used'] == (4 + 3) / 261  # the, cat, sat, \n, . and two bytes


def test_characters_by_hand():
    made = make('chars', 'abc \n')
    found = of(made, 'ab d\n')
    assert found['tokens'] == 5
    assert found['unknown_rate'] == 1 / 5
    assert found['character_coverage'] == found['different_character_coverage'] == 2 / 3
    assert found['tokens_of_words'] == {2: 2}  # 'ab' and ' d', of which 'd' is unknown.
    assert found['word_coverage'] == 0
    assert of(made, 'a a')['word_coverage'] == 1  # A space of its own is no second piece.


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_rates_are_of_what_is_counted(kind):
    made = make(kind)
    texts = [TEXT, ZH, *random_texts(50)]
    found = of(made, *texts)
    ids = np.concatenate([made.encode(text) for text in texts])
    assert found['tokens'] == len(ids)
    assert found['bytes'] == sum(len(text.encode()) for text in texts)
    assert found['unknown_rate'] == (ids == made.specials.unk).mean()
    assert found['vocabulary_used'] == len(set(ids) - {3}) / made.is_text.sum()
    assert sum(found['tokens_of_words'].values()) == found['words']
    for name in ('word', 'different_word', 'character', 'different_character'):
        assert 0 <= found[f'{name}_coverage'] <= 1
    spaces = ' '.join(TEXT.split()[:100])
    assert of(made, spaces)['spaced_words'] == 100


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_counts_add_up(kind):
    made = make(kind)
    texts = [TEXT, ZH, *random_texts(20)]
    whole, found = fertility.count(made, texts), fertility.added(made, [])
    for text in texts:
        found = found + fertility.count(made, [text])
    assert fertility.facts(made, whole) == fertility.facts(made, found)


def test_more_than_a_block(monkeypatch):
    made = make('words')
    whole = of(made, *TEXT.splitlines(keepends=True))
    monkeypatch.setattr(fertility, '_BLOCK', 100)
    assert of(made, *TEXT.splitlines(keepends=True)) == whole


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_no_text_has_no_rates(kind):
    found = fertility.measure(make(kind), {'en': []})
    assert found['all'] == found['languages']['en']
    assert (found['all']['tokens'], found['all']['tokens_per_word']) == (0, None)
    assert found['all']['tokens_of_words'] == {}


def test_chinese_words_are_characters():
    found = fertility.measure(make('chars', ZH + TEXT), {'zh': [ZH], 'en': ['the cat']})
    chinese, english = found['languages']['zh'], found['languages']['en']
    assert chinese['words'] == chinese['spaced_words'] == 10  # With two marks.
    assert chinese['tokens_of_words'] == {1: 10}
    assert english['tokens_of_words'] == {3: 1, 4: 1}
    assert found['all']['words'] == 12


def test_imported_tokenizers(tmp_path):
    """A tokenizer.json of byte-level BPE, as GPT-2's, and a sentencepiece .model with a dummy prefix."""
    (tmp_path / 'tokenizer.json').write_text(json.dumps(trained_elsewhere()))
    (tmp_path / 'their.model').write_bytes(train_as_others_do(vocab_size=400))
    gpt2 = tokenizer.from_pretrained(tmp_path / 'tokenizer.json')
    found = of(gpt2, 'the 一')
    # Byte-level: three parts of a character, with or without the space.
    assert found['unknown_rate'] == 0
    assert found['byte_rate'] >= 3 / found['tokens']
    assert found['character_coverage'] == 3 / 4
    assert found['word_coverage'] == 1 / 2
    theirs = tokenizer.from_pretrained(tmp_path / 'their.model')
    found = of(theirs, 'the ℵ')
    assert found['unknown_rate'] > 0
    assert found['word_coverage'] == 1 / 2
    assert found['character_coverage'] == 3 / 4  # The ▁ before each is no second piece.
    fallback = train_as_others_do(vocab_size=700, byte_fallback=True)
    (tmp_path / 'their.model').write_bytes(fallback)
    theirs = tokenizer.from_pretrained(tmp_path / 'their.model')
    assert len(theirs.byte_ids()) == 256
    found = of(theirs, 'the 😀')
    assert (found['unknown_rate'], found['byte_rate']) == (0, 4 / found['tokens'])


def test_bytes_of_an_imported_tokenizer_with_byte_fallback(tmp_path):
    vocab = {'<unk>': 0, 'a': 1} | {f'<0x{byte:02X}>': 2 + byte for byte in range(256)}
    model = models.BPE(vocab, [], unk_token='<unk>', byte_fallback=True)
    tokenizers.Tokenizer(model).save(str(tmp_path / 'tokenizer.json'))
    made = tokenizer.from_pretrained(tmp_path / 'tokenizer.json')
    assert made.byte_ids().tolist() == [*range(2, 258)]
    found = of(made, 'aéa')
    assert (found['tokens'], found['byte_rate'], found['unknown_rate']) == (4, 2 / 4, 0)
