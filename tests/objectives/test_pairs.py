import itertools

import numpy as np

from lm.objectives.pairs import pair
from tests.objectives.specs import example, make_spec, plain


def test_pair_by_hand():
    assert plain(pair([10, 11], [12], 1, make_spec())) == example(pair)
    assert plain(pair([1, 10, 11, 2], [1, 12, 2], np.int64(1), make_spec())) == example(pair)


def test_a_value_to_be_regressed_on():
    fields = pair([10, 11], [12], 2.5, make_spec())
    assert 'labels' not in fields
    assert fields['label_values'].dtype == np.float32
    assert fields['label_values'].tolist() == [2.5, 0, 0, 0, 0, 0]
    assert fields['label_weights'].tolist() == [1, 0, 0, 0, 0, 0]


def test_the_longer_loses_its_last_token_while_both_are_too_long():
    for length, first, second in itertools.product(range(3, 20), range(0, 15, 2), range(0, 15, 3)):
        texts = np.arange(100, 100 + first), np.arange(200, 200 + second)
        fields = pair(*texts, 0, make_spec(length=length))
        while first + second + 3 > length:
            if first > second:
                first -= 1
            else:
                second -= 1
        kept = [1, *range(100, 100 + first), 2, *range(200, 200 + second), 2]
        assert fields['inputs'].tolist() == kept
        assert fields['token_types'].tolist() == [0] * (first + 2) + [1] * (second + 1)
