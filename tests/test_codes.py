"""Control codes: their names, the tokens that stand for them, and where they stand."""

import dataclasses

import numpy as np
import pytest

from lm import codes, tokenizer, vocabulary
from lm.errors import InputError
from tests.test_tokenizer import SPEC

NAMES = ('news', 'fiction', 'title=', 'words<3', 'words<9', 'words>=9')
IDS = {name: 300 + i for i, name in enumerate(NAMES)}


def tokens(*given):
    return codes.tokens(given, IDS, tokenizer.Bytes().encode, 'here')


def test_a_code_is_its_id_and_one_with_text_stands_around_it():
    assert tokens() == []
    assert tokens('fiction', 'news') == [301, 300]
    assert tokens('title=Ab', 'news') == [300, 302, 69, 102, 302]
    assert tokens('title=a=b') == [302, 101, 65, 102, 302]
    assert tokens('genre=news', 'title=', 'words<9') == [300, 304]  # A field of a source; no title.


def test_unknown_codes_name_the_nearest():
    with pytest.raises(InputError, match="here: the code 'newz' is not known. Did you mean 'news'"):
        tokens('newz')
    with pytest.raises(InputError, match="'fictoin' is not known. Did you mean 'fiction'"):
        tokens('genre=fictoin')
    with pytest.raises(InputError, match='config.tokenizer.codes is empty'):
        codes.tokens(['news'], {}, tokenizer.Bytes().encode, 'here')


@pytest.mark.parametrize('name', ['', 'a b', 'a,b', '{a}', 'a=b', 'words<', 'lines<3', 'words>3'])
def test_names_that_cannot_be(name):
    with pytest.raises(InputError, match='is not a code such as'):
        codes.check(('news', name))


def test_a_name_stands_once():
    codes.check(NAMES)
    with pytest.raises(InputError, match="'news' stands there twice"):
        codes.check(('news', 'fiction', 'news'))


@pytest.mark.parametrize(
    ('words', 'expected'),
    [(1, ['words<3']), (2, ['words<3']), (3, ['words<9']), (8, ['words<9']), (9, ['words>=9'])],
)
def test_lengths_have_the_nearest_bound(words, expected):
    text = ' '.join(['ab'] * words)
    assert codes.of_length(text, NAMES) == expected
    assert codes.of_length(text, ('characters<1000', 'news')) == ['characters<1000']
    assert codes.of_length(text, ('words<1', 'title=')) == []


def test_codes_stand_after_the_begin_of_a_document_and_before_a_part_of_one():
    given = np.array([300, 301], np.int32)
    assert codes.before(np.array([1, 10, 11]), given, True).tolist() == [1, 300, 301, 10, 11]
    assert codes.before(np.array([10, 11]), given, False).tolist() == [300, 301, 10, 11]
    assert codes.before(np.array([1, 10]), given[:0], True).tolist() == [1, 10]


def test_the_ids_of_codes_come_last():
    made = tokenizer.Bytes()
    spec = dataclasses.replace(SPEC, mask=True, sentinels=2, codes=('news', 'title='))
    found = vocabulary.build(made, spec)
    assert (found.mask, found.sentinels) == (260, (261, 262))
    assert found.codes == {'news': 263, 'title=': 264}
    assert found.total == len(found.starts_word) == len(found.ends_sentence) == 265
    assert made.decode([69, 263, 264]) == 'A'
    with pytest.raises(InputError, match='stands there twice'):
        vocabulary.build(made, dataclasses.replace(SPEC, codes=('a', 'a')))
