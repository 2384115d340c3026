"""Masks as text: read, written, and refused with carets under the fault."""

import pytest
from hypothesis import given

from lm.attention import masks
from lm.attention.expression import NAMES, causal_form, parse, parse_pattern
from lm.attention.masks import causal, window
from lm.errors import InputError
from tests.attention.strategies import MASKS


@given(MASKS)
def test_what_is_written_can_be_read(mask):
    assert parse(str(mask)) == mask


@pytest.mark.parametrize(
    ('text', 'mask'),
    [
        (' causal ', causal),
        ('causal & window(256)', causal & window(256)),
        ('causal & (window(4) | global_tokens(2))', causal & (window(4) | masks.global_tokens(2))),
        ('causal & window(4) | global_tokens(2)', (causal & window(4)) | masks.global_tokens(2)),
        ('~causal & ~(window(4) | full)', ~causal & ~(window(4) | masks.full)),
        ('bigbird', masks.bigbird()),
        ('causal & bigbird(128, seed=3)', causal & masks.bigbird(128, 64, 3, 3)),
        ('random_blocks(count=2, seed=1)', masks.random_blocks(2, 1)),
        ('gpt3(8)', (causal, causal & window(8))),
        ('heads(causal, causal & window(2))', masks.heads(causal, causal & window(2))),
    ],
)
def test_reads(text, mask):
    assert parse(text) == mask


def test_every_name_has_a_meaning_and_is_documented():
    for name, made in NAMES.items():
        assert (made if callable(made) else type(made)).__doc__, name


def test_patterns_are_flat():
    assert parse_pattern(('full', 'gpt3(4)')) == (masks.full, causal, causal & window(4))


@pytest.mark.parametrize(
    ('text', 'causal_text'),
    [
        ('full', 'causal'),
        ('window(3) | global_tokens(2)', 'causal & (window(3) | global_tokens(2))'),
        ('causal & window(3)', 'causal & window(3)'),
        ('heads(full, causal, window(2))', 'heads(causal, causal, causal & window(2))'),
        ('linear(causal=0)', 'linear'),
    ],
)
def test_causal_forms_can_be_written(text, causal_text):
    assert causal_form(parse(text)) == causal_text
    assert parse(causal_text).is_causal


@pytest.mark.parametrize(
    ('text', 'message', 'fault'),
    [
        ('causal & windw(3)', "'windw' is not known. Did you mean 'window'?", 'windw'),
        ('causal and full', "write '&' for 'and' and '|' for 'or'.", 'causal and full'),
        ('not causal', "write '~' for 'not'.", 'not causal'),
        ('causal & window', 'write window(width): missing', 'window'),
        ('causal & window(0) & full', 'width must be an integer of at least 1', 'window(0)'),
        ('window(1.5)', 'only integers are arguments', '1.5'),
        ('window(width=full)', 'only integers are arguments', 'full'),
        (
            'bigbird(wide=3)',
            'write bigbird(width=192, count=64, blocks=3, seed=0)',
            'bigbird(wide=3)',
        ),
        ('causal(3)', "'causal' takes no arguments", 'causal(3)'),
        ('causal & gpt3', 'it stands alone', 'gpt3'),
        ('heads(causal) & full', 'it stands alone', 'heads(causal)'),
        ('causal + full', 'only names, numbers in calls', 'causal + full'),
        ('full & "é" & 3', 'only names, numbers in calls', '"é"'),
        ('__import__("os")', "'__import__' is not known", '__import__'),
        ('causal.__class__', 'only names', 'causal.__class__'),
    ],
)
def test_faults_are_underlined(text, message, fault):
    with pytest.raises(InputError) as caught:
        parse(text)
    first, second, third = str(caught.value).split('\n')
    assert first.startswith(f"config.model.attention = '{text}': ")
    assert message in first
    assert second == f'  {text}'
    start = third.index('^')
    assert second[start : len(third)] == fault
    assert set(third) <= {' ', '^'}


@pytest.mark.parametrize('text', ['causal &', '(causal', '', 'causal full', '3 3'])
def test_what_python_cannot_read(text):
    with pytest.raises(InputError, match='not an expression of masks') as caught:
        parse(text)
    assert str(caught.value).split('\n')[2].endswith('^')
