"""Words as tokens, against a rule written out character by character, and sampling."""

import dataclasses
import random
import tracemalloc
import unicodedata

import numpy as np
import pytest

from lm import tokenizer, tokenizer_base, words_tokenizer
from lm.errors import InputError
from tests.test_tokenizer import SPEC, TEXT, make, random_texts


def goes_on(character):
    point = ord(character)
    chinese = (0x2E80, 0xA000), (0xF900, 0xFB00), (0x20000, 0x40000)
    letter = unicodedata.category(character)[0] in 'LMN'
    return letter and not any(a <= point < b for a, b in chinese)


def slowly(text):
    """The rule of `split`, a character at a time."""
    found, i = [], 0
    while i < len(text):
        start = i
        if text[i] == ' ':
            i += 1
            after = text[i : i + 1]
            if after == ' ':
                while text[i + 1 : i + 2] == ' ':
                    i += 1
                found.append(text[start:i])
                continue
            if after == '' or after.isspace():
                found.append(' ')
                continue
        if goes_on(text[i]):
            while i < len(text) and goes_on(text[i]):
                i += 1
        else:
            i += 1
        found.append(text[start:i])
    return found


def test_split_by_hand():
    text = "The cats,  (12) 一日\n\tdon't_de\u0301ja\u0300 \n   x𝐀𝐁b \U0001f600!"
    assert words_tokenizer.split(text) == [
        *('The', ' cats', ',', ' ', ' (', '12', ')', ' 一', '日', '\n', '\t'),
        *('don', "'", 't', '_', 'de\u0301ja\u0300', ' ', '\n', '  ', ' x𝐀𝐁b', ' \U0001f600', '!'),
    ]


def test_split_is_its_rule():
    rng = random.Random(1)
    near = [chr(c) for c in range(0x3400) if not 0xD800 <= c < 0xE000]
    letters = [*near[:600], ' ', ' ', '一', '𝐀', '\U000e0101']
    mixed = [''.join(rng.choices(letters, k=60)) for _ in range(99)]
    for text in [TEXT, *random_texts(300), *mixed, ''.join(near)]:
        words = words_tokenizer.split(text)
        assert words == slowly(text)
        assert ''.join(words) == text


def test_every_character_is_classed_as_its_category_says():
    """At each place where what goes on a word begins or ends: the character before it and the one after."""
    found = [goes_on(chr(c)) for c in range(0x110000)]
    changes = np.flatnonzero(np.diff(found)).tolist()
    assert len(changes) > 1000
    points = [c for change in changes for c in (change, change + 1) if not 0xD800 <= c < 0xE000]
    text = ''.join(f'a{chr(c)}b {chr(c)}' for c in points)
    assert words_tokenizer.split(text) == slowly(text)


def test_words_by_hand():
    text = 'the cat saw the dog and the cat\n'
    made = make('words', text, vocab_size=4 + 256 + 2 + 3)
    # The end of a line and the tab, then ' the' and ' cat' (two each), and of those that occur once ' and'.
    assert made.words == [' cat', ' the', ' and']
    assert made.pieces()[256:258] == [b'\n', b'\t']
    first = 4 + 256
    ids = made.encode(' the cat\nand')
    assert ids.tolist() == [first + 3, first + 2, first, *(4 + byte for byte in b'and')]
    assert made.decode(ids) == ' the cat\nand'
    assert made.decode(ids[:4]) == ' the cat\na'


def test_without_byte_fallback_a_word_is_one_unknown():
    made = make('words', 'the cat sat\n', vocab_size=4 + 2 + 3, byte_fallback=False)
    assert made.encode('the dog sat\n').tolist() == [8, tokenizer.UNK, 7, 4]
    assert made.byte_ids().tolist() == []
    assert made.decode(made.encode('the cat sat\n')) == 'the cat sat\n'


def test_a_symbol_is_cut_out_of_words():
    made = make('words', symbols=('<BT', '<BT>', 'ff'))
    for text, count in (('a<BT> <BT>b <BT', 3), ('off effect', 2), (' <BT>', 1)):
        symbols = [made.encode(symbol)[0] for symbol in ('<BT>', '<BT', 'ff')]
        ids = made.encode(text)
        assert np.isin(ids, symbols).sum() == count
        assert (ids == symbols[0]).sum() == text.count('<BT>')
        assert made.decode(ids) == text


def test_sizes_that_do_not_fit():
    text = 'the cat saw the dog\n'
    for options in ({}, {'byte_fallback': False}, {'symbols': ('<BT>',)}):
        for wrong in (1, 10**6):
            with pytest.raises(tokenizer.WrongSize) as raised:
                make('words', text, vocab_size=wrong, **options)
            right = raised.value.right
            assert f'works is {right}.' in str(raised.value)
            assert make('words', text, vocab_size=right, **options).vocab_size == right
            beyond = right + (1 if wrong > right else -1)
            with pytest.raises(InputError):
                make('words', text, vocab_size=beyond, **options)


@pytest.mark.parametrize('kind', ['unigram', 'bpe', 'words'])
@pytest.mark.parametrize(
    'text', ['a', 'abab abab', '一日一善，花好月圆。' * 3, 'x' * 5000, 'hello world\n' * 100, TEXT]
)
def test_the_largest_size_is_the_largest(kind, text):
    for options in ({}, {'byte_fallback': False, 'symbols': ('<BT>',)}):
        with pytest.raises(tokenizer.WrongSize, match='largest') as raised:
            make(kind, text, vocab_size=100_000, **options)
        most = raised.value.right
        assert make(kind, text, vocab_size=most, **options).vocab_size == most
        with pytest.raises(tokenizer.WrongSize):
            make(kind, text, vocab_size=most + 1, **options)


def test_a_sample_takes_no_more_memory_than_its_limit():
    """Of 3 MB of lines, some empty, 100 kB are kept, and the same each time."""

    def texts():
        for i in range(300):
            yield '\n'.join(f'{i} {j} ' + 'word ' * (j % 40) for j in range(100)) + '\n' * (i % 7)

    size = sum(len(text) for text in texts())
    assert size > 2_800_000
    tracemalloc.start()
    kept = tokenizer_base.sample(texts(), 100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600_000
    assert 50_000 <= sum(map(len, kept)) <= 100_000
    assert kept == tokenizer_base.sample(texts(), 100_000)
    numbers = [int(line.split()[0]) for line in kept if line]
    assert numbers[-1] > 290
    assert numbers == sorted(numbers)


def test_empty_lines_are_left_out():
    assert tokenizer_base.sample(['\n' * 10_000 + 'a\n\nb', '\n', 'c'], 2) == ['a', 'c']


def test_training_reads_no_more_than_train_bytes():
    """The second half of the lines is left out: every other line is the same word."""
    text = 'one\ntwo\n' * 1000
    made = make('words', text, vocab_size=263, train_bytes=4000)
    assert made.words == ['one']
    with pytest.raises(InputError, match='largest that works is 263'):
        make('words', text, vocab_size=264, train_bytes=4000)


def test_parts_are_the_text():
    for text in ['', 'a', TEXT, 'x' * 50_000, 'one\n' * 9000, '\n' * 20_000]:
        parts = list(tokenizer_base.parts_of(text))
        assert ''.join(parts) == text
        assert all(0 < len(part) <= 16_000 for part in parts)
        assert all(part[-1] == '\n' or len(part) == 16_000 for part in parts[:-1])


def test_a_kind_is_told_from_the_config():
    assert set(tokenizer.WITH_SYMBOLS) < set(tokenizer.KINDS)
    assert dataclasses.replace(SPEC, kind='words').kind == make('words').kind == 'words'
