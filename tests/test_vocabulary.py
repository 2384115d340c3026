"""Where words and sentences end in the ids of each tokenizer, and the ids that objectives add."""

import dataclasses
import itertools

import numpy as np
import pytest

from lm import tokenizer, vocabulary
from lm.errors import InputError
from lm.vocabulary import inner, permuted, rotated
from tests.objectives.specs import make_spec
from tests.test_tokenizer import SPEC, TEXT, make, train_as_others_do


def words(kind, text):
    """The text, cut where `word_starts` says that words start."""
    made = make(kind, text + TEXT)
    ids, pieces = made.encode(text), made.pieces()
    starts = vocabulary.build(made, SPEC).word_starts(ids)
    parts = []
    for i, start in zip(ids, starts, strict=True):
        parts += [b''] * bool(start)
        parts[-1] += pieces[i - 4]
    return [part.decode() for part in parts]


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_words_start_where_letters_do(kind):
    text = "Two cats, 12 dogs\n\tde\u0301ja\u0300's\n一日一善"
    expected = ['Two', 'cats', ',', '12', 'dogs', '\n', '\t', 'de\u0301ja\u0300', "'", 's', '\n']
    found = [word.strip(' ') for word in words(kind, text)]
    # A space is a word, or the beginning of the next one.
    assert [word for word in found if word] == [*expected, *'一日一善']


def test_words_of_bytes_by_hand():
    assert words('bytes', 'ab c') == ['ab', ' ', 'c']
    assert words('chars', 'ab c') == ['ab', ' ', 'c']


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_sentences_end_where_they_do(kind):
    made = make(kind)
    found = vocabulary.build(made, SPEC)
    ends = [piece for piece, end in zip(made.pieces(), found.ends_sentence[4:], strict=True) if end]
    assert b'.' in ends
    assert b'\n' in ends
    assert ('。'.encode() in ends) == (kind == 'chars')  # The others have it as bytes.
    assert b',' not in ends
    for piece in ends:
        assert b'\n' in piece or piece.decode()[-1] in '.!?。．｡！？'


def test_mask_and_sentinels_come_after_the_tokenizers_ids():
    made = make('bytes')
    found = vocabulary.build(made, SPEC)
    assert (found.size, found.mask, found.sentinels) == (260, -1, ())
    assert found.total == 260
    more = dataclasses.replace(SPEC, mask=True, sentinels=2)
    found = vocabulary.build(made, more)
    assert (found.size, found.mask, found.sentinels) == (260, 260, (261, 262))
    assert found.total == len(found.starts_word) == 263
    assert found.word_starts(np.array([69, 70, 260, 70, 261])).tolist() == [1, 0, 1, 1, 1]
    assert made.decode([69, 260, 261, 262]) == 'A'


def test_a_tokenizer_with_a_mask_and_sentinels_of_its_own_gets_no_others():
    model = train_as_others_do(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    specials = tokenizer.Specials(0, 0, 1, 2, mask=300, sentinels=(303, 302, 301))
    own = tokenizer.SentencePiece(model, specials)
    more = dataclasses.replace(SPEC, mask=True, sentinels=2, codes=('news',))
    found = vocabulary.build(own, more)
    assert (found.size, found.bos, found.eos) == (304, 0, 1)
    assert (found.mask, found.sentinels, found.codes) == (300, (303, 302), {'news': 304})
    assert found.total == len(found.ends_word) == 305
    assert found.text.tolist() == [*range(3, 300)]
    assert vocabulary.build(own, SPEC).sentinels == (303, 302, 301)  # None asked for: all.
    with pytest.raises(InputError, match=r'config.tokenizer.sentinels = 4 is more than the 3'):
        vocabulary.build(own, dataclasses.replace(SPEC, sentinels=4))
    none = tokenizer.SentencePiece(model, dataclasses.replace(specials, mask=-1, sentinels=()))
    found = vocabulary.build(none, more)
    assert (found.mask, found.sentinels, found.codes) == (300, (301, 302), {'news': 303})


def test_what_words_are_does_not_hinge_on_where_special_ids_stand():
    model = train_as_others_do(unk_id=299, bos_id=7, eos_id=40)
    made = tokenizer.SentencePiece(model)
    found = vocabulary.build(made, SPEC)
    text = 'the other statements'
    ids, pieces = made.encode(text), dict(zip(found.text, made.pieces(), strict=True))
    expected = [pieces[i].startswith(b' ') for i in ids]
    assert sum(expected) == 3
    assert found.word_starts(ids).tolist() == expected
    assert found.starts_word[[7, 40, 299]].all()
    assert not found.ends_sentence[[7, 40, 299]].any()


def test_a_text_is_what_is_between_bos_and_eos():
    ids = make_spec().vocabulary
    assert inner([1, 10, 11, 2], ids) == slice(1, 3)
    assert inner([10, 11], ids) == slice(0, 2)
    assert [inner(t, ids) for t in ([], [1], [2], [1, 2])] == [
        slice(0, 0),
        slice(1, 1),
        slice(0, 0),
        slice(1, 1),
    ]
    same = dataclasses.replace(ids, bos=19, eos=19)  # As in GPT-2.
    assert [inner(t, same) for t in ([19, 1, 2, 19], [19], [1, 19])] == [
        slice(1, 3),
        slice(1, 1),
        slice(0, 1),
    ]


def test_sentences_and_the_beginning_of_a_text_move():
    ids, rng = make_spec().vocabulary, np.random.default_rng(0)
    text = np.array([5, 9, 6, 7, 19, 8])
    found = {tuple(permuted(text, rng, ids).tolist()) for _ in range(200)}
    sentences = ((5, 9), (6, 7, 19), (8,))
    assert found == {sum(order, ()) for order in itertools.permutations(sentences)}
    found = {tuple(rotated(text, rng).tolist()) for _ in range(200)}
    assert found == {(*text[i:].tolist(), *text[:i].tolist()) for i in range(len(text))}
    assert [len(made) for made in (permuted(text[:0], rng, ids), rotated(text[:0], rng))] == [0, 0]
