import doctest

import numpy as np
import pytest
from corpus_texts import prose

from lm.data.corpus import exact, words

CHINESE = '战国无双是由光荣开发的系列。本作以三大故事为主轴，分别介绍！'


def test_the_examples_of_the_docstrings():
    for module in (words, exact):
        found = doctest.testmod(module)
        assert found.attempted
        assert not found.failed


def test_scripts_without_spaces():
    assert words.count(CHINESE) == sum(c not in '。，！' for c in CHINESE)
    assert words.count('ภาษาไทย') == len('ภาษาไทย')
    assert words.count('한국어 문장') == 2
    assert not words.has_spaces(CHINESE)
    assert not words.has_spaces(CHINESE + ' with some English words in it')
    assert words.has_spaces(prose(0) + '你好')
    assert words.has_spaces('')


def test_what_is_compared_has_no_case_accents_or_numbers():
    assert words.normal('Die ÜBUNG, 1.234!') == words.normal('die Ubung 5.6')
    assert words.normal('ＡＢＣ') == ['abc']


@pytest.mark.parametrize('n', [1, 3, 5])
def test_ngrams_are_equal_where_words_are(n):
    hashed = words.hashes(['a', 'b', 'c', 'a', 'b', 'c', 'd'], {})
    grams = words.ngrams(hashed, n)
    assert len(grams) == 7 - n + 1
    texts = [['a', 'b', 'c', 'a', 'b', 'c', 'd'][i : i + n] for i in range(len(grams))]
    for i, one in enumerate(texts):
        for j, other in enumerate(texts):
            assert (grams[i] == grams[j]) == (one == other)
    assert not len(words.ngrams(hashed[: n - 1], n))
    backwards = words.ngrams(hashed[::-1], n)
    assert n == 1 or not np.intersect1d(backwards, grams).size
