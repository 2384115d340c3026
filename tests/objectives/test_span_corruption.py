import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.objectives.span_corruption import count, span_corruption
from lm.tokenizer import BOS, EOS
from tests.objectives.specs import example, make_spec, make_window, plain, seeded, share_is


def put_together(fields, sentinels):
    """The window, from the source with its sentinels and the target that fills them."""
    spans, current = {}, None
    for token in fields['targets'].tolist()[:-1]:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    parts = [spans.pop(token, [token]) for token in fields['encoder_inputs'].tolist()]
    assert not spans
    return [token for part in parts for token in part]


def test_span_corruption_by_hand():
    spec = make_spec(mask=False, sentinels=2, rate=0.4, span=1.5)
    tokens = [1, 10, 11, 12, 13, 14, 15, 2]
    fields = span_corruption(tokens, seeded(2), spec)
    assert plain(fields) == example(span_corruption)
    assert put_together(fields, spec.vocabulary.sentinels) == tokens


@given(
    n=st.integers(4, 300),
    seed=st.integers(0, 2**32),
    rate=st.floats(0, 1),
    span=st.floats(1, 20),
    bos=st.booleans(),
    eos=st.booleans(),
)
def test_nothing_is_lost(n, seed, rate, span, bos, eos):
    spec = make_spec(size=1000, sentinels=300, rate=rate, span=span)
    sentinels = spec.vocabulary.sentinels
    tokens = make_window(n, np.random.default_rng(seed), 1000, bos, eos)
    fields = span_corruption(tokens, np.random.default_rng(seed), spec)
    assert put_together(fields, sentinels) == tokens.tolist()
    targets, source = fields['targets'], fields['encoder_inputs']
    assert fields['inputs'].tolist() == [BOS, *targets[:-1].tolist()]
    assert targets[-1] == EOS
    # Sentinels are used in their order, one a span, and never next to each other in the source.
    noise, spans = count(n, rate, span)
    for found in (targets, source):
        assert [t for t in found.tolist() if t in sentinels] == list(sentinels[:spans])
    is_sentinel = np.isin(source, sentinels)
    assert not (is_sentinel[1:] & is_sentinel[:-1]).any()
    assert (len(targets), len(source)) == (noise + spans + 1, n - noise + spans)


def test_density_and_mean_span_are_t5s():
    rng, spec = seeded(), make_spec(size=1000, sentinels=100)
    noise = spans = total = 0
    where = np.zeros(512)
    for _ in range(1000):
        tokens = np.arange(4, 516, dtype=np.int32)
        fields = span_corruption(tokens, rng, spec)
        is_sentinel = fields['targets'] >= 1001
        hidden = fields['targets'][:-1][~is_sentinel[:-1]]
        where[hidden - 4] += 1
        noise, spans = noise + len(hidden), spans + is_sentinel.sum()
        total += len(tokens)
    assert noise / total == pytest.approx(0.15, abs=0.001)
    assert noise / spans == pytest.approx(3, abs=0.05)
    # Uniform but at the ends, where fewer spans can stand.
    assert all(share_is(count, 1000, 0.15) for count in where[10:-10])


def test_all_ways_are_as_likely():
    """Two of five tokens in two spans: the six ways in which they are apart."""
    rng, spec = seeded(), make_spec(sentinels=2, rate=0.4, span=1.0)
    seen = collections.Counter(
        tuple(span_corruption([10, 11, 12, 13, 14], rng, spec)['encoder_inputs'].tolist())
        for _ in range(6000)
    )
    assert len(seen) == 6
    assert all(share_is(number, 6000, 1 / 6) for number in seen.values())


def test_too_few_sentinels_are_told():
    with pytest.raises(ValueError, match='2 spans need as many sentinels, not 1'):
        span_corruption([10, 11, 12, 13, 14], seeded(), make_spec(sentinels=1, rate=0.4, span=1.0))
