from fractions import Fraction

import pytest

from lm.data import slices
from lm.data.slices import Document
from lm.errors import InputError

TEXTS = ['one two\n three ', '', '   ', 'four', ' five six  seven\n']


def cut(part, texts=TEXTS):
    return [d.text for d in slices.parse(part, 'here').apply(lambda: map(Document, texts))]


@pytest.mark.parametrize(
    ('part', 'expected'),
    [
        (':', TEXTS),
        ('1:4', TEXTS[1:4]),
        ('3:', TEXTS[3:]),
        (':5c', ['one t']),
        ('5c:8c', ['wo\n']),
        (':2w', ['one two\n ']),
        ('2w:4w', ['three ', '', '   ', 'four']),
        ('4w:6w', [' five six  ']),
        ('6w:', ['seven\n']),
        ('9w:', []),
    ],
)
def test_parts_by_hand(part, expected):
    assert cut(part) == expected


@pytest.mark.parametrize('unit', ['', 'c', 'w', '%'])
def test_parts_joined_are_the_whole(unit):
    for i in range(12):
        for j in range(i + 1, 14):
            parts = [f':{i}{unit}'] * (i > 0) + [f'{i}{unit}:{j}{unit}', f'{j}{unit}:']
            assert ''.join(text for part in parts for text in cut(part)) == ''.join(TEXTS)


@pytest.mark.parametrize('size', [1, 9, 10, 99, 1003])
def test_percent_ends_where_nanogpt_does(size):
    text = 'x' * size
    assert ''.join(cut(':90%', [text])) == text[: int(size * 0.9)]
    assert ''.join(cut('90%:', [text])) == text[int(size * 0.9) :]
    assert ''.join(cut(':0.5%', [text])) == text[: int(size * 0.005)]


@pytest.mark.parametrize(
    ('part', 'expected'),
    [
        (':', 'aAbBcC'),
        ('1:2', 'bB'),
        ('1:', 'bBcC'),
        (':9', 'aAbBcC'),
        (':67%', 'aAbB'),
        ('67%:', 'cC'),
    ],
)
def test_pairs_stay_together(part, expected):
    def read():
        return map(Document, 'aAbBcC')

    found = slices.parse(part, 'here').apply_to_groups(read, 2)
    assert ''.join(document.text for document in found) == expected


def test_reading_stops_at_the_end():
    def endless():
        while True:
            yield Document('a b')

    assert len(list(slices.parse('3:7', 'here').apply(endless))) == 4
    assert len(list(slices.parse(':4w', 'here').apply(endless))) == 2


def test_parsed():
    assert slices.parse('12.5%:', 'here') == slices.Slice(Fraction(25, 2), None, '%')
    assert slices.parse(':', 'here').is_all


@pytest.mark.parametrize(
    'part',
    ['', '90%', ':90x', '1:2:3', '5c:6w', '5:6w', 'w:6w', '7:7', '8w:2w', '100%:', ':1.5', '-1:'],
)
def test_bad_parts_get_one_line(part):
    with pytest.raises(InputError, match='here: the part'):
        slices.parse(part, 'here')
