import collections

import numpy as np
import pytest

from lm.objectives.ul2 import parse, prompt, ul2
from lm.tokenizer import EOS
from tests.objectives.specs import OPTIONS, example, make_spec, make_window, plain, seeded, share_is
from tests.objectives.test_span_corruption import put_together


def test_ul2_by_hand():
    spec = make_spec(mask=False, sentinels=5, denoisers=('S 0.25',))
    assert plain(ul2([1, 10, 11, 12, 13, 14, 15, 2], seeded(2), spec)) == example(ul2)


def test_the_papers_seven():
    assert [tuple(d) for d in parse(OPTIONS.denoisers)] == [
        ('R', 3, 0.15),
        ('R', 8, 0.15),
        ('S', float('inf'), 0.25),
        ('X', 3, 0.5),
        ('X', 8, 0.5),
        ('X', 64, 0.15),
        ('X', 64, 0.5),
    ]


@pytest.mark.parametrize('denoiser', OPTIONS.denoisers)
def test_each_denoisers_rate_span_and_mode(denoiser):
    ((mode, span, rate),) = parse((denoiser,))
    spec = make_spec(size=1000, sentinels=120, denoisers=(denoiser,))
    *sentinels, regular, sequential, extreme = spec.vocabulary.sentinels
    rng, n = seeded(), 512
    for _ in range(50):
        tokens = make_window(n, rng, 1000)
        fields = ul2(tokens, rng, spec)
        source = fields['encoder_inputs']
        assert source[0] == {'R': regular, 'S': sequential, 'X': extreme}[mode]
        spans = np.isin(source, sentinels).sum()
        noise = len(fields['targets']) - 1 - spans
        assert noise == round(rate * n)
        assert spans == max(1, round(noise / span))
        fields['encoder_inputs'] = source[1:]
        assert put_together(fields, sentinels) == tokens.tolist()
        if mode == 'S':
            assert source[-2:].tolist() == [sentinels[0], EOS]


def test_denoisers_are_drawn_evenly():
    """With as many sentinels in a source as tell the denoisers apart."""
    rng, spec = seeded(), make_spec(size=1000, sentinels=120)
    tokens = make_window(512, rng, 1000)
    drawn = collections.Counter(
        (fields['encoder_inputs'][0], len(fields['targets']), len(fields['encoder_inputs']))
        for fields in (ul2(tokens, rng, spec) for _ in range(3500))
    )
    assert len(drawn) == 7
    assert all(share_is(number, 3500, 1 / 7) for number in drawn.values())


def test_a_prompt_is_what_a_sequential_denoiser_makes_of_a_text():
    spec = make_spec(mask=False, sentinels=5, denoisers=('X 3 0.5', 'S 0.25'))
    before, after, begun = prompt(spec)
    assert prompt(spec) == ((23, 1), (20, 2), (1, 20))
    only = make_spec(mask=False, sentinels=5, denoisers=('S 0.25',))
    fields = ul2([1, 10, 11, 12, 13, 14, 15, 2], seeded(), only)
    assert fields['encoder_inputs'].tolist() == [*before, 10, 11, 12, 13, *after]
    assert fields['inputs'].tolist() == [*begun, 14, 15]
    assert prompt(make_spec(mask=False, sentinels=5, denoisers=('X 3 0.5',))).before == (24, 1)
