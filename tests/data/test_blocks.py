import random

import pytest

from lm.data import blocks


def test_blocks_come_in_order_and_few_at_a_time():
    made, taken, begun = [], [], []

    def items():
        for number in range(20):
            begun.append(number)
            yield number

    for encoded in blocks.in_order(lambda n: made.append(n) or -n, items(), workers=3):
        taken.append(encoded)
        assert len(begun) <= len(taken) + 12
    assert taken == [-n for n in range(20)]
    assert sorted(made) == list(range(20))


def test_a_failure_in_a_thread_is_raised():
    def encode(block):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(blocks.in_order(encode, iter(range(20)), workers=2))


def count(text):
    return blocks.count_words(text, text.encode())


def test_words_are_those_of_split():
    rng = random.Random(0)
    spaces = [chr(point) for point in range(0x110000) if chr(point).isspace()]
    others = ['a', 'é', '日', '\u200b', '\ufeff', '😀', '\x00', '\x1b', '\u3022', '\U0010ffff']
    assert len(blocks._IS_SPACE) == max(map(ord, spaces)) + 2
    for space in spaces:
        assert count(f'a{space}b') == 2
        assert count(f'{space}a{space}b{space}' + 'c' * 99) == 3
    for _ in range(300):
        text = ''.join(rng.choice(rng.choice([spaces, others])) for _ in range(rng.randint(1, 30)))
        assert count(text) == len(text.split())
        assert count(text + 'x' * 999) == len((text + 'x').split())  # Most of it is ASCII.
        assert count('x' * 999 + text) == len(('x' + text).split())
