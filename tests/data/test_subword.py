"""Words cut into pieces at random: the same text, and each cut as often as the papers have it."""

import collections
import math

import numpy as np
import pytest

from lm.data.subword import Bpe, Piece, Unigram, pieces_of
from tests.objectives.specs import share_is
from tests.test_tokenizer import TEXT, make, random_texts

KINDS = {'unigram': (Unigram, 0.1), 'bpe': (Bpe, 0.5)}
USUAL = {'unigram': 1e3, 'bpe': 0.0}  # The number at which words are cut as the tokenizer does.
# `ab` is merged first, then `bc`, then `abc` of `ab` and `c`, or of `a` and `bc`.
PIECES = {
    'a': Piece(0, -1.5),
    'b': Piece(1, -2.0),
    'c': Piece(2, -2.5),
    'ab': Piece(3, -1.0),
    'bc': Piece(4, -3.0),
    'abc': Piece(5, -4.0),
}
CUTS = ('a b c', 'ab c', 'a bc', 'abc')


def cut(ids):
    texts = list(PIECES)
    return ' '.join(texts[i] for i in ids)


@pytest.mark.parametrize('kind', KINDS)
def test_another_segmentation_is_of_the_same_text(kind):
    maker, number = KINDS[kind]
    made = make(kind, symbols=('<BT>',))
    words, rng, others = maker(pieces_of(made)), np.random.default_rng(0), 0
    for text in ['', TEXT[:3000], '<BT>a <BT> b  \n \n c\t d', *random_texts(300)]:
        ids = made.encode(text)
        found = words.resegmented(ids, rng, 1.0, number)
        assert found.dtype == np.int32
        assert made.decode(found) == text
        assert ((found >= 4) & (found < made.vocab_size)).all()
        # Symbols, and characters in bytes, are as they were.
        fixed = np.ones(made.vocab_size, bool)
        fixed[[piece.id for piece in words.pieces.values()]] = False
        np.testing.assert_array_equal(found[fixed[found]], ids[fixed[ids]])
        others += found.tolist() != ids.tolist()
    assert others > 30  # Most of the texts are bytes only.


@pytest.mark.parametrize('kind', KINDS)
def test_the_likeliest_segmentation_is_the_tokenizers(kind):
    made = make(kind, symbols=('<BT>',))
    words = KINDS[kind][0](pieces_of(made))
    scores = np.zeros(made.vocab_size)
    for piece in words.pieces.values():
        scores[piece.id] = piece.score
    for text in [TEXT, *random_texts(300)]:
        ids = made.encode(text)
        found = words.resegmented(ids, np.random.default_rng(0), 1.0, USUAL[kind])
        if kind == 'bpe':
            np.testing.assert_array_equal(found, ids)
        else:  # Of those that are equally likely another one may come out.
            np.testing.assert_allclose(scores[found].sum(), scores[ids].sum(), rtol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_so_many_words_are_cut_anew(kind):
    made = make(kind)
    words, rng, count = KINDS[kind][0](pieces_of(made)), np.random.default_rng(0), 2000
    drawn = []
    words.draw = lambda word, *_: drawn.append(word)
    ids = np.tile(made.encode('The cat sits  there.'), count)
    words.resegmented(ids, rng, 0.3, 0.5)
    assert share_is(len(drawn), 3 * count + 1, 0.3)
    assert set(drawn) <= {'The', '▁cat', '▁sits', '▁▁there.', '▁▁there.The'}
    np.testing.assert_array_equal(words.resegmented(ids, rng, 0.0, 0.5), ids)


@pytest.mark.parametrize('alpha', [0.2, 1.0, 3.0])
def test_segmentations_are_as_likely_as_kudo_has_them(alpha):
    words, rng, count = Unigram(PIECES), np.random.default_rng(0), 20_000
    found = collections.Counter(cut(words.draw('abc', rng, alpha)) for _ in range(count))
    weights = {
        text: math.exp(alpha * sum(PIECES[piece].score for piece in text.split())) for text in CUTS
    }
    assert set(found) <= set(CUTS)
    for text, weight in weights.items():
        assert share_is(found[text], count, weight / sum(weights.values()))


@pytest.mark.parametrize('rate', [0.1, 0.6])
def test_merges_are_left_out_as_provilkov_has_them(rate):
    """`ab`, `bc` can be merged at first; then what is left with the third character."""
    words, rng, count = Bpe(PIECES), np.random.default_rng(0), 20_000
    found = collections.Counter(cut(words.draw('abc', rng, rate)) for _ in range(count))
    kept = 1 - rate
    shares = {'ab c': kept * rate, 'a bc': rate * kept * rate, 'a b c': rate**2}
    shares['abc'] = 1 - sum(shares.values())
    assert set(found) == set(CUTS)
    for text, share in shares.items():
        assert share_is(found[text], count, share)


def test_merges_go_from_the_first_rank_on_and_from_the_left():
    words, rng = Bpe(PIECES), np.random.default_rng(0)
    assert cut(words.draw('aab', rng, 0.0)) == 'a ab'
    assert cut(words.draw('cbc', rng, 0.0)) == 'c bc'
    later = PIECES | {'bc': Piece(4, -0.5)}
    assert cut(Bpe(later).draw('abcc', rng, 0.0)) == 'abc c'
    del later['abc']
    assert cut(Bpe(later).draw('abcc', rng, 0.0)) == 'a bc c'
    aa = {'a': Piece(0, 0.0), 'aa': Piece(1, -1.0)}
    assert Bpe(aa).draw('aaa', rng, 0.0) == [1, 0]
    assert cut(words.draw('abcab', rng, 1.0)) == 'a b c a b'


@pytest.mark.parametrize('kind', KINDS)
def test_text_without_spaces_is_cut_into_words(kind):
    made = make(kind)
    words = KINDS[kind][0](pieces_of(made))
    text = ''.join(TEXT[:3000].split())
    ids = made.encode(text)
    found = words._words(ids.tolist())
    assert [token for _, tokens in found for token in tokens] == ids.tolist()
    assert 30 < max(len(word) for word, _ in found) < 64
    assert (
        made.decode(words.resegmented(ids, np.random.default_rng(0), 1.0, KINDS[kind][1])) == text
    )


@pytest.mark.parametrize('words', [Unigram(PIECES), Bpe(PIECES)], ids=['unigram', 'bpe'])
def test_a_word_that_pieces_cannot_write_stays(words):
    assert words.draw('abd', np.random.default_rng(0), 0.5) is None


def test_the_same_generator_draws_the_same():
    made = make('unigram')
    ids = made.encode(TEXT[:3000])
    one, two = Unigram(pieces_of(made)), Unigram(pieces_of(made))
    one.resegmented(ids, np.random.default_rng(5), 1.0, 0.1)  # What is kept makes no difference.
    found = [w.resegmented(ids, np.random.default_rng(1), 0.5, 0.1).tolist() for w in (one, two)]
    assert found[0] == found[1]
    assert found[0] != one.resegmented(ids, np.random.default_rng(2), 0.5, 0.1).tolist()
