"""Numbers written out in two languages by rule: pairs for translation that every machine has.

>>> list(documents('test', ('en', 'zh')))[2:4]
['one hundred and ninety-two', '一百九十二']

Documents 2i and 2i + 1 are the two sides of pair i. What is right has one spelling, so that a model that
learned the rule scores 100 on numbers it never saw.
"""

import functools
import random
from collections.abc import Callable, Iterator

from lm.errors import InputError, lookup

# Goes up when the numbers or their words change.
VERSION = 1
LIMIT = 10**9  # Numbers are 0 <= n < LIMIT.

_TRAIN, _HELD_OUT = 40_000, 500
SPLITS = {
    '': slice(None),
    'test': slice(_HELD_OUT),
    'valid': slice(_HELD_OUT, 2 * _HELD_OUT),
    'train': slice(2 * _HELD_OUT, None),
}


def documents(split: str, pair: tuple[str, str]) -> Iterator[str]:
    """Yields each number of a split in the first language, then in the second.

    Args:
        split: '' for all, `train` (40,000 numbers, all below 100 among them), `valid` or `test` (500 each).
        pair: two of `LANGUAGES`.

    Raises:
        InputError: there is no such split.
    """
    part = lookup(SPLITS, split, 'the split of builtin:numerals')
    source, target = (LANGUAGES[name] for name in pair)
    for number in _numbers()[part]:
        yield source(number)
        yield target(number)


def identity() -> str:
    """Returns what decides the text beside the split and the languages."""
    return f'numerals {VERSION}'


def languages(text: str, place: str) -> tuple[str, str]:
    """Returns two languages written as `en,de`, which is also what '' stands for.

    Raises:
        InputError: they are not two, or one is not known.
    """
    pair = (text or 'en,de').split(',')
    if len(pair) != 2:
        raise InputError(f"{place}: '#{text}' is not two languages, such as '#en,de'.")
    for name in pair:
        lookup(LANGUAGES, name, f'{place}: a language')
    return pair[0], pair[1]


@functools.cache
def _numbers() -> list[int]:
    """Returns the numbers of all splits, each once, those held out first.

    They are drawn so that n + 1 is log-uniform: as many of four digits as of eight. The held out ones are
    the first that are drawn from 100 on.
    """
    rng = random.Random(0)
    drawn: dict[int, None] = {}
    while len(drawn) < _TRAIN + 2 * _HELD_OUT:
        # An octave 2^k <= v < 2^(k + 1), a v in it, and v is kept with the probability 2^k / v. In
        # contrast to 10 ** x this is exact, and so the same on every machine.
        octave = 1 << int(30 * rng.random())
        value = octave + int(octave * rng.random())
        if rng.random() * value < octave and value <= LIMIT:
            drawn[value - 1] = None
    first = [number for number in drawn if number >= 100][: 2 * _HELD_OUT]
    held_out = set(first)
    return first + [number for number in drawn if number not in held_out]


# --- English ---------------------------------------------------------------------------------------

_EN = [
    *('zero', 'one', 'two', 'three', 'four', 'five', 'six'),
    *('seven', 'eight', 'nine', 'ten', 'eleven', 'twelve', 'thirteen'),
    *('fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen', 'nineteen'),
]
_EN_TENS = [
    *('', '', 'twenty', 'thirty', 'forty'),
    *('fifty', 'sixty', 'seventy', 'eighty', 'ninety'),
]


def english(number: int) -> str:
    """Returns British English, with `and` and hyphens, without commas.

    >>> english(1_000_121)
    'one million one hundred and twenty-one'
    """
    for size, name in ((10**6, 'million'), (10**3, 'thousand'), (100, 'hundred')):
        if number >= size:
            head, rest = divmod(number, size)
            joint = '' if not rest else ' and ' if rest < 100 else ' '
            return f'{english(head)} {name}{joint}{english(rest) if rest else ""}'
    if number < 20:
        return _EN[number]
    tens, unit = divmod(number, 10)
    return f'{_EN_TENS[tens]}-{_EN[unit]}' if unit else _EN_TENS[tens]


# --- German ----------------------------------------------------------------------------------------

_DE = [
    *('null', 'eins', 'zwei', 'drei', 'vier', 'fünf', 'sechs'),
    *('sieben', 'acht', 'neun', 'zehn', 'elf', 'zwölf', 'dreizehn'),
    *('vierzehn', 'fünfzehn', 'sechzehn', 'siebzehn', 'achtzehn', 'neunzehn'),
]
_DE_TENS = [
    *('', '', 'zwanzig', 'dreißig', 'vierzig'),
    *('fünfzig', 'sechzig', 'siebzig', 'achtzig', 'neunzig'),
]


def german(number: int) -> str:
    """Returns German; what is below a million is one word.

    A number begins with `hundert` or `tausend`; further in it is `einhundert` and `eintausend`.

    >>> german(1_001), german(1_100), german(21_000_001)
    ('tausendeins', 'tausendeinhundert', 'einundzwanzig Millionen eins')
    """
    millions, rest = divmod(number, 10**6)
    words = []
    if millions:
        words += [_german(millions, 'eine'), 'Million' if millions == 1 else 'Millionen']
    if rest or not millions:
        words.append(_german(rest, 'eins'))
    text = ' '.join(words)
    return text.removeprefix('ein') if text.startswith(('einhundert', 'eintausend')) else text


def _german(number: int, one: str) -> str:
    """Returns the word for a number below a million; `one` is the 1 that it may end with."""
    for size, name in ((1000, 'tausend'), (100, 'hundert')):
        if number >= size:
            head, rest = divmod(number, size)
            return _german(head, 'ein') + name + (_german(rest, one) if rest else '')
    if number < 20:
        return one if number == 1 else _DE[number]
    tens, unit = divmod(number, 10)
    return f'{_german(unit, "ein")}und{_DE_TENS[tens]}' if unit else _DE_TENS[tens]


# --- French ----------------------------------------------------------------------------------------

_FR = [
    *('zéro', 'un', 'deux', 'trois', 'quatre', 'cinq', 'six'),
    *('sept', 'huit', 'neuf', 'dix', 'onze', 'douze', 'treize'),
    *('quatorze', 'quinze', 'seize', 'dix-sept', 'dix-huit', 'dix-neuf'),
]
_FR_TENS = ['', '', 'vingt', 'trente', 'quarante', 'cinquante', 'soixante']


def french(number: int) -> str:
    """Returns the French of France in the spelling before 1990: hyphens below 100 only, none at `et`.

    >>> french(71), french(280), french(80_200)
    ('soixante et onze', 'deux cent quatre-vingts', 'quatre-vingt mille deux cents')
    """
    if number >= 10**6:
        head, rest = divmod(number, 10**6)
        words = [french(head), 'million' if head == 1 else 'millions']
    elif number >= 1000:
        head, rest = divmod(number, 1000)
        words = [_singular(french(head)), 'mille'] if head > 1 else ['mille']
    elif number >= 100:
        head, rest = divmod(number, 100)
        words = [french(head), 'cent' if rest else 'cents'] if head > 1 else ['cent']
    else:
        return _french(number)
    return ' '.join([*words, french(rest)] if rest else words)


def _french(number: int) -> str:
    """Returns the words for a number below 100."""
    if number < 20:
        return _FR[number]
    if number >= 80:
        return f'quatre-vingt-{_FR[number - 80]}' if number > 80 else 'quatre-vingts'
    tens, unit = divmod(number, 10)
    if tens == 7:
        tens, unit = 6, unit + 10
    joint = '' if not unit else ' et ' if unit in (1, 11) else '-'
    return _FR_TENS[tens] + joint + (_FR[unit] if unit else '')


def _singular(text: str) -> str:
    """Before `mille`, `vingts` and `cents` lose their s; before the noun `millions` they keep it."""
    return text[:-1] if text.endswith(('vingts', 'cents')) else text


# --- Chinese ---------------------------------------------------------------------------------------

_ZH = '零一二三四五六七八九'


def chinese(number: int) -> str:
    """Returns Chinese in simplified characters.

    A number begins with 十, not 一十; and with 两 where a lone 2 stands before 千, 万 or 亿. All other twos
    are 二. Zeros at the end of a group of four digits are not read; others, and an empty group, are one 零.

    >>> chinese(105), chinese(2_200), chinese(120_000), chinese(100_001_000)
    ('一百零五', '两千二百', '十二万', '一亿零一千')
    """
    if number == 0:
        return _ZH[0]
    text, skipped = '', False
    for size, name in ((10**8, '亿'), (10**4, '万'), (1, '')):
        group = number // size % 10**4
        if group:
            if text and (skipped or group < 1000):
                text += _ZH[0]
            text += _chinese(group) + name
        skipped = not group
    if text.startswith('一十'):
        return text[1:]
    return '两' + text[1:] if text.startswith(('二千', '二万', '二亿')) else text


def _chinese(group: int) -> str:
    """Returns the characters of 1 <= group < 10,000."""
    text, skipped = '', False
    for size, name in ((1000, '千'), (100, '百'), (10, '十'), (1, '')):
        digit = group // size % 10
        if digit:
            text += (_ZH[0] if text and skipped else '') + _ZH[digit] + name
        skipped = not digit
    return text


LANGUAGES: dict[str, Callable[[int], str]] = {
    'en': english,
    'de': german,
    'fr': french,
    'zh': chinese,
}
