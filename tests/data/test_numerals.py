import hashlib
import itertools
import random
import re

import pytest

from lm.data import numerals, source
from lm.errors import InputError

# Written by hand.
ENGLISH = {
    0: 'zero',
    13: 'thirteen',
    20: 'twenty',
    21: 'twenty-one',
    40: 'forty',
    100: 'one hundred',
    101: 'one hundred and one',
    999: 'nine hundred and ninety-nine',
    1000: 'one thousand',
    1001: 'one thousand and one',
    1099: 'one thousand and ninety-nine',
    1100: 'one thousand one hundred',
    12_345: 'twelve thousand three hundred and forty-five',
    100_000: 'one hundred thousand',
    101_010: 'one hundred and one thousand and ten',
    1_000_000: 'one million',
    1_000_001: 'one million and one',
    1_100_000: 'one million one hundred thousand',
    1_001_000: 'one million one thousand',
    999_999_999: 'nine hundred and ninety-nine million nine hundred and ninety-nine thousand '
    'nine hundred and ninety-nine',
}
GERMAN = {
    0: 'null',
    1: 'eins',
    12: 'zwölf',
    16: 'sechzehn',
    17: 'siebzehn',
    21: 'einundzwanzig',
    30: 'dreißig',
    66: 'sechsundsechzig',
    77: 'siebenundsiebzig',
    100: 'hundert',
    101: 'hunderteins',
    121: 'hunderteinundzwanzig',
    200: 'zweihundert',
    1000: 'tausend',
    1001: 'tausendeins',
    1100: 'tausendeinhundert',
    2017: 'zweitausendsiebzehn',
    21_000: 'einundzwanzigtausend',
    100_000: 'hunderttausend',
    101_000: 'hunderteintausend',
    101_101: 'hunderteintausendeinhunderteins',
    1_000_000: 'eine Million',
    1_000_001: 'eine Million eins',
    1_000_100: 'eine Million einhundert',
    1_001_000: 'eine Million eintausend',
    2_000_000: 'zwei Millionen',
    21_000_000: 'einundzwanzig Millionen',
    100_000_000: 'hundert Millionen',
    101_000_000: 'hunderteine Millionen',
    999_999_999: 'neunhundertneunundneunzig Millionen '
    'neunhundertneunundneunzigtausendneunhundertneunundneunzig',
}
FRENCH = {
    0: 'zéro',
    16: 'seize',
    17: 'dix-sept',
    20: 'vingt',
    21: 'vingt et un',
    22: 'vingt-deux',
    61: 'soixante et un',
    70: 'soixante-dix',
    71: 'soixante et onze',
    72: 'soixante-douze',
    77: 'soixante-dix-sept',
    80: 'quatre-vingts',
    81: 'quatre-vingt-un',
    90: 'quatre-vingt-dix',
    91: 'quatre-vingt-onze',
    99: 'quatre-vingt-dix-neuf',
    100: 'cent',
    101: 'cent un',
    180: 'cent quatre-vingts',
    200: 'deux cents',
    201: 'deux cent un',
    1000: 'mille',
    1100: 'mille cent',
    1789: 'mille sept cent quatre-vingt-neuf',
    2000: 'deux mille',
    21_000: 'vingt et un mille',
    80_000: 'quatre-vingt mille',
    80_080: 'quatre-vingt mille quatre-vingts',
    200_000: 'deux cent mille',
    200_200: 'deux cent mille deux cents',
    1_000_000: 'un million',
    1_001_000: 'un million mille',
    2_000_000: 'deux millions',
    80_000_000: 'quatre-vingts millions',
    200_000_000: 'deux cents millions',
    280_280_280: 'deux cent quatre-vingts millions deux cent quatre-vingt mille deux cent quatre-vingts',
}
CHINESE = {
    0: '零',
    2: '二',
    10: '十',
    12: '十二',
    20: '二十',
    22: '二十二',
    100: '一百',
    105: '一百零五',
    110: '一百一十',
    112: '一百一十二',
    200: '二百',
    222: '二百二十二',
    1000: '一千',
    1001: '一千零一',
    1010: '一千零一十',
    1100: '一千一百',
    2000: '两千',
    2002: '两千零二',
    2222: '两千二百二十二',
    10_000: '一万',
    10_001: '一万零一',
    10_500: '一万零五百',
    12_000: '一万二千',
    20_000: '两万',
    22_000: '两万二千',
    100_000: '十万',
    105_000: '十万五千',
    100_500: '十万零五百',
    120_000: '十二万',
    200_000: '二十万',
    1_100_000: '一百一十万',
    1_010_000: '一百零一万',
    20_000_000: '两千万',
    20_002_000: '两千万二千',
    20_000_200: '两千万零二百',
    100_000_000: '一亿',
    100_000_001: '一亿零一',
    100_001_000: '一亿零一千',
    100_010_000: '一亿零一万',
    110_000_000: '一亿一千万',
    200_000_000: '两亿',
    222_222_222: '两亿二千二百二十二万二千二百二十二',
    300_400_050: '三亿零四十万零五十',
}
BY_HAND = {'en': ENGLISH, 'de': GERMAN, 'fr': FRENCH, 'zh': CHINESE}
SOME = [*range(2000), *(int(10 ** (9 * random.Random(n).random())) for n in range(3000))]


@pytest.mark.parametrize('language', numerals.LANGUAGES)
def test_by_hand(language):
    expected = BY_HAND[language]
    assert {n: numerals.LANGUAGES[language](n) for n in expected} == expected


@pytest.mark.parametrize('language', numerals.LANGUAGES)
def test_no_two_numbers_are_written_alike(language):
    numbers = set(SOME)
    assert len({numerals.LANGUAGES[language](n) for n in numbers}) == len(numbers)


def as_num2words(language, number):
    """What num2words writes, in our spelling, or None where it is wrong."""
    num2words = pytest.importorskip('num2words').num2words
    text = num2words(number, lang=language)
    if language == 'en':
        return text.replace(',', '')
    if language == 'de':
        # It writes 'hunderteinstausend' and 'hunderteins Millionen'.
        if any(
            count > 1 and count % 100 == 1 for count in (number // 10**6, number // 1000 % 1000)
        ):
            return None
        return re.sub('^ein(?=hundert|tausend)', '', text)
    return text


@pytest.mark.slow
@pytest.mark.parametrize('language', ['en', 'de', 'fr'])
def test_as_num2words_has_it(language):
    compared = 0
    for number in SOME:
        expected = as_num2words(language, number)
        if expected is not None:
            assert numerals.LANGUAGES[language](number) == expected
            compared += 1
    assert compared > 0.95 * len(SOME)


def read_chinese(text):
    """The number that Chinese characters stand for, by their values alone."""
    total = group = digit = 0
    for character in text.replace('两', '二').replace('零', ''):
        if character in '一二三四五六七八九':
            digit = '零一二三四五六七八九'.index(character)
        elif character in '十百千':
            group += (digit or 1) * {'十': 10, '百': 100, '千': 1000}[character]
            digit = 0
        else:
            total += (group + digit) * {'万': 10**4, '亿': 10**8}[character]
            group = digit = 0
    return total + group + digit


def test_chinese_reads_back():
    assert [read_chinese(numerals.chinese(number)) for number in SOME] == SOME


def test_splits():
    parts = {name: numerals._numbers()[part] for name, part in numerals.SPLITS.items()}
    everything = parts.pop('')
    assert {name: len(part) for name, part in parts.items()} == {
        'train': 40_000,
        'valid': 500,
        'test': 500,
    }
    assert len(set(everything)) == len(everything) == 41_000
    assert sorted(itertools.chain(*parts.values())) == sorted(everything)
    assert min(everything) == 0
    assert max(everything) < numerals.LIMIT
    assert set(range(100)) <= set(parts['train'])
    # As many of each length, but that there are few short numbers: within 4 standard deviations.
    for name, shortest in (('train', 6), ('valid', 3), ('test', 3)):
        part = parts[name]
        sizes = [sum(len(str(number)) == size for number in part) for size in range(shortest, 10)]
        mean = sum(sizes) / len(sizes)
        assert all(abs(size - mean) < 4 * mean**0.5 for size in sizes), sizes


def test_the_numbers_never_change():
    assert numerals._numbers()[:5] == [58987160, 192, 10932978, 250099, 31913048]
    assert numerals._numbers()[1000:1005] == [0, 1, 42, 46, 3]
    assert hashlib.sha256(repr(numerals._numbers()).encode()).hexdigest()[:8] == 'e6d77508'


def test_as_a_source(config_data):
    made = source.parse('builtin:numerals#de,zh[test]', config_data)
    texts = list(made.documents())
    assert made.paired
    assert texts == list(made.documents())
    numbers = numerals._numbers()[:500]
    assert texts[::2] == [numerals.german(n) for n in numbers]
    assert texts[1::2] == [numerals.chinese(n) for n in numbers]
    default = source.parse('builtin:numerals[test]', config_data)
    assert next(default.documents()) == numerals.english(numbers[0])
    part = source.parse('builtin:numerals#de,zh[100:102]', config_data)
    assert list(part.documents()) == texts[200:204]


def test_fingerprints_differ(config_data):
    specs = ['[test]', '[valid]', '#en,fr[test]', '#fr,en[test]', '', '[:10]', '[:10%]']
    prints = [source.parse(f'builtin:numerals{s}', config_data).fingerprint() for s in specs]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('numerals#en,df', "'df' is not known. (Did you mean 'de'|Choose one of: de, en, fr, zh)"),
        ('numerals#en', 'is not two languages'),
        ('numerals#en,de,fr', 'is not two languages'),
        ('numerals[trian]', "Did you mean 'train'"),
        ('numerals[:100w]', 'would cut pairs apart'),
        ('numeral', "Did you mean 'numerals'"),
    ],
)
def test_bad_specs_get_one_line(spec, message, config_data):
    with pytest.raises(InputError, match=message) as raised:
        source.parse(f'builtin:{spec}', config_data)
    assert '\n' not in str(raised.value)
