"""Each augmentation of the table, and what all of them keep."""

import ast
import collections
import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from lm.data import augment
from lm.data.augment import AUGMENTATIONS, Given, Step
from lm.data.augmenter import Augmenter
from lm.data.subword import Bpe, Piece, Unigram
from lm.errors import InputError
from lm.tokenizer import BOS, EOS, UNK
from tests.objectives.specs import make_spec, seeded, share_is

SIZE = 40
# Of the ids 4 to 39, 10 to 12 are pieces of words.
PIECES = {'a': Piece(10, -1.0), 'b': Piece(11, -1.0), 'ab': Piece(12, -2.0)}
WORDS = {'unigram': Unigram(PIECES), 'bpe': Bpe(PIECES)}
MOVES = ('swap', 'shuffle', 'permute', 'rotate')
IN_PLACE = ('replace', 'replace_unigram', 'replace_nearest', 'drop')
CUTS = ('subword', 'bpe_dropout')
NO_PREFIX = np.zeros(0, np.int32)


def vocabulary_of(size=SIZE):
    made = make_spec(size).vocabulary
    return dataclasses.replace(made, ends_sentence=np.arange(made.total) == 12)


def make_given(name, size=SIZE):
    ids = vocabulary_of(size)
    is_text = np.zeros(ids.total, bool)
    is_text[ids.text] = True
    return Given(
        ids,
        is_text,
        blank=UNK,
        frequencies=np.cumsum(ids.text == 9).astype(float),  # All text is 9.
        neighbours=(np.arange(ids.total, dtype=np.int32) ^ 1)[:, None],
        words=WORDS.get(AUGMENTATIONS[name].needs),
    )


def numbers_of(name, rate):
    return (rate, 0.5)[: len(AUGMENTATIONS[name].numbers)]


def make(name, rate, size=SIZE, prefix=NO_PREFIX):
    text = ' '.join(map(str, (name, *numbers_of(name, rate))))
    return Augmenter(augment.parse((text,)), make_given(name, size), prefix)


def make_window(n, rng, bos, eos):
    """Random ids, an UNK here and there, between BOS and EOS."""
    text = rng.integers(4, SIZE, n).astype(np.int32)
    text[rng.random(n) < 0.3] = 12
    text[rng.random(n) < 0.1] = UNK
    return np.concatenate([[BOS] * bos, text, [EOS] * eos]).astype(np.int32)


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_as_its_docstring_shows(name):
    entry = AUGMENTATIONS[name]
    shown = re.search(
        r'>>> (\w+)\((\[.*?\]), rng, given, (.*?)\)\n +(\[.*?\])\n', entry.function.__doc__
    )
    assert shown[1] == name
    text, numbers, expected = map(ast.literal_eval, (shown[2], f'({shown[3]},)', shown[4]))
    made = entry.function(np.array(text), seeded(), make_given(name, 20), *numbers)
    assert made.tolist() == expected != text
    assert 'http' in entry.function.__doc__ or 'Wei and Zou 2019' in entry.function.__doc__


@pytest.mark.parametrize('name', AUGMENTATIONS)
@examples(
    n=st.integers(0, 60),
    seed=st.integers(0, 2**32),
    rate=st.floats(0, 1),
    bos=st.booleans(),
    eos=st.booleans(),
)
def test_what_all_of_them_keep(name, n, seed, rate, bos, eos):
    tokens = make_window(n, seeded(seed), bos, eos)
    before, augmenter = tokens.copy(), make(name, rate)
    most = len(tokens) + n // 3
    made = augmenter(tokens, seeded(seed), most)
    assert made.dtype == np.int32
    np.testing.assert_array_equal(tokens, before)
    # Deterministic; and nothing at rate 0, of which no random number is drawn.
    np.testing.assert_array_equal(made, augmenter(tokens, seeded(seed), most))
    rng = seeded(seed)
    np.testing.assert_array_equal(make(name, 0.0)(tokens, rng, most), tokens)
    assert rng.random() == seeded(seed).random()
    # Long enough, and not too long; BOS and EOS where they were, and nowhere else.
    assert len(made) <= most
    assert (len(made) > bos + eos) == (n > 0)
    for special, there in ((BOS, bos), (EOS, eos)):
        assert (made == special).sum() == there
    assert (made[:bos] == BOS).all()
    assert (made[len(made) - eos :] == EOS).all()
    specials = make_given(name).is_text
    if name != 'drop' and len(made) < most:
        assert (made == UNK).sum() == (tokens == UNK).sum()
        assert not (~specials[made] & (made > UNK)).any()  # No mask is put in.
    if name in MOVES:
        assert sorted(made.tolist()) == sorted(tokens.tolist())
    if name in IN_PLACE:
        assert len(made) == len(tokens)
        np.testing.assert_array_equal(made[tokens == UNK], UNK)
    if name in CUTS and len(made) < most:
        assert spelled(made) == spelled(tokens)
    if name == 'delete':
        assert not collections.Counter(made.tolist()) - collections.Counter(tokens.tolist())


def spelled(tokens):
    return [part for token in tokens.tolist() for part in ([10, 11] if token == 12 else [token])]


@pytest.mark.parametrize('name', ['drop', 'replace_nearest', 'insert', 'delete', 'swap'])
@pytest.mark.parametrize('rate', [0.13, 0.5])
def test_so_many_tokens_change(name, rate):
    """Of 36 and an UNK, which only `swap` concerns: it moves like the others."""
    rng, augmenter, changed, count = seeded(), make(name, rate), 0, 500
    for _ in range(count):
        tokens = np.concatenate([rng.permutation(np.arange(4, SIZE)), [UNK]]).astype(np.int32)
        made = augmenter(tokens, rng, 100)
        number = abs(len(made) - len(tokens)) or (made != tokens).sum()
        if name == 'swap':  # Two tokens at once.
            assert abs(number / 2 - rate * 37 / 2) < 1
            assert np.abs(np.argsort(made) - np.argsort(tokens)).max() == 1
        else:
            assert abs(number - rate * 36) < 1
        changed += number
    # A number that is rounded up or down at random, 500 times.
    expected = rate * (37 if name == 'swap' else 36)
    assert abs(changed / count - expected) < 5 * (1 + (name == 'swap')) * 0.5 / count**0.5


def test_what_is_put_in():
    rng, tokens = seeded(), np.full(2000, 13, np.int32)
    found = {name: make(name, 1.0)(tokens, rng, 4000) for name in (*IN_PLACE, 'insert')}
    counts = np.bincount(found['replace'], minlength=SIZE)
    assert (counts[:4] == 0).all()
    assert all(share_is(count, 2000, 1 / 36) for count in counts[4:])
    assert set(found['replace_unigram'].tolist()) == {9}
    assert set(found['replace_nearest'].tolist()) == {12}
    assert set(found['drop'].tolist()) == {UNK}
    assert make('delete', 1.0)(tokens, rng, 4000).tolist() == [13]
    assert (len(found['insert']), set(found['insert'].tolist())) == (4000, {13})


def test_where_things_go():
    rng, text = seeded(), np.arange(4, SIZE, dtype=np.int32)
    for _ in range(100):
        made = make('shuffle', 1.0)(text, rng, 100)
        spans = np.split(made, np.flatnonzero(np.diff(made) != 1) + 1)
        # At most three spans of five tokens are between where a token was and where it is.
        assert np.abs(np.argsort(made) - np.arange(len(text))).max() <= 3 * 5
        assert len(spans) > 2
    counts = collections.Counter(
        tuple(make('permute', 0.4)(np.array([5, 12, 6], np.int32), rng, 9).tolist())
        for _ in range(2000)
    )
    assert set(counts) == {(5, 12, 6), (6, 5, 12)}
    assert share_is(counts[6, 5, 12], 2000, 0.2)
    counts = collections.Counter(
        int(make('rotate', 0.6)(np.array([5, 6, 7], np.int32), rng, 9)[0]) for _ in range(2000)
    )
    assert all(share_is(counts[first], 2000, 0.2) for first in (6, 7))


def test_a_text_that_grows_is_cut_at_its_end():
    tokens = np.array([BOS, 5, 6, 7, 8, EOS], np.int32)
    made = make('insert', 1.0)(tokens, seeded(), 7)
    assert (len(made), made[0], made[-1]) == (7, BOS, EOS)


def test_a_prefix_stays():
    prefix, rng = np.array([20, 21, 22], np.int32), seeded()
    augmenter = make('replace_unigram', 1.0, prefix=prefix)
    for text, first in (([20, 21, 22, 5], 3), ([20, 21, 5, 6], 2), ([5, 20], 0), ([20], 1)):
        made = augmenter(np.array([BOS, *text], np.int32), rng, 9)
        assert made.tolist() == [BOS, *text[:first], *[9] * (len(text) - first)]


def test_they_are_done_in_turn():
    text = ('replace_unigram 1', 'drop 0', 'swap 0.0', 'insert 0.5')
    assert augment.parse(text)[::3] == [Step('replace_unigram', (1.0,)), Step('insert', (0.5,))]
    augmenter = Augmenter(augment.parse(text), make_given('replace'), NO_PREFIX)
    assert augmenter(np.array([5, 6], np.int32), seeded(), 9).tolist() == [9, 9, 9]
    assert augment.growth(text) == 1.5
    assert augment.growth(('insert 0.5', 'insert 0.1', 'subword 0.5 0.2')) == pytest.approx(
        1.5 * 1.1 * 1.25
    )
    assert augment.growth(()) == 1.0


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('inset 0.1', r"config.data.augment = 'inset' is not known. Did you mean 'insert'\?"),
        ('insert', r"'insert' must be 'insert RATE', in numbers"),
        ('insert a', r"'insert a' must be 'insert RATE', in numbers"),
        ('insert 0.1 2', r"must be 'insert RATE'"),
        ('insert nan', r"must be 'insert RATE'"),
        ('subword 0.1', r"must be 'subword RATE ALPHA'"),
        ('insert 1.1', r"'insert 1.1' has a rate of 1.1; it is between 0 and 1"),
        ('insert -0.1', r'has a rate of -0.1'),
        ('subword 0.1 0', r'has a number of 0; it must be above 0'),
        ('', r"config.data.augment = '' is not known"),
    ],
)
def test_a_mistake_is_one_line(text, message):
    with pytest.raises(InputError, match=message):
        augment.parse((text,))
