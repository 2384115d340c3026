import itertools

import numpy as np
import pytest

from lm.objectives.masked import UNITS, masked
from lm.tokenizer import BOS, EOS
from tests.objectives.specs import example, make_spec, make_window, plain, seeded, share_is, text_of


def test_masked_by_hand():
    spec = make_spec(rate=0.5)
    assert plain(masked([1, 10, 11, 12, 13, 2], seeded(2), spec)) == example(masked)


def test_pairs_by_hand():
    spec = make_spec(pairs='order')
    assert plain(masked([1, 10, 11, 12, 2], seeded(2), spec)) == example(masked, 1)


def test_rates_over_a_million_tokens():
    """15 % are chosen; of them 80 % become the mask, 10 % random, 10 % stay."""
    rng, spec, size = seeded(), make_spec(size=1000, length=514), 1000
    chosen = hidden = changed = 0
    where = np.zeros(512)
    for _ in range(2000):
        tokens = make_window(514, rng, size)
        fields = masked(tokens, rng, spec)
        weights = fields['loss_weights'] > 0
        assert weights.sum() == round(0.15 * 512)
        assert not weights[[0, -1]].any()
        np.testing.assert_array_equal(fields['targets'], tokens)
        np.testing.assert_array_equal(fields['inputs'][~weights], tokens[~weights])
        inputs = fields['inputs'][weights]
        chosen += weights.sum()
        hidden += (inputs == spec.vocabulary.mask).sum()
        changed += ((inputs != spec.vocabulary.mask) & (inputs != tokens[weights])).sum()
        where += weights[1:-1]
    assert share_is(chosen, 2000 * 512, 0.15)
    assert share_is(hidden, chosen, 0.8)
    assert share_is(changed, chosen, 0.1 * (1 - 1 / (size - 4)))
    assert share_is(chosen - hidden - changed, chosen, 0.1 + 0.1 / (size - 4))
    # No place is chosen more often than another.
    assert all(share_is(count, 2000, 0.15) for count in where)


@pytest.mark.parametrize('unit', ['token', 'word', 'span'])
@pytest.mark.parametrize(('rate', 'most'), [(0.0, 0), (0.15, 0), (0.5, 5), (1.0, 0), (1.0, 7)])
def test_the_number_chosen(unit, rate, most):
    spec = make_spec(unit=unit, rate=rate, max_predictions=most, span=2.0)
    for n in range(4, 60):
        tokens = make_window(n, np.random.default_rng(n), eos=False)
        chosen = masked(tokens, np.random.default_rng(n), spec)['loss_weights'].sum()
        wanted = min(n - 1, max(1, round(rate * (n - 1))), most or n)
        assert 1 <= chosen <= (most or n)
        if unit != 'word':
            assert chosen == wanted


def words(tokens, vocabulary):
    """Places of each word, one token after the other."""
    parts = []
    for place, token in enumerate(tokens.tolist()):
        after_special = place == 0 or tokens[place - 1] < 4
        if after_special or token < 4 or token % 3 == 0:
            parts.append([])
        parts[-1].append(place)
    return parts


def test_whole_words():
    rng, spec = seeded(), make_spec(unit='word', length=200)
    total = 0
    for _ in range(300):
        tokens = make_window(200, rng)
        chosen = masked(tokens, rng, spec)['loss_weights'] > 0
        for word in words(tokens, spec.vocabulary):
            assert len(set(chosen[word].tolist())) == 1
        total += chosen.sum()
    assert total / (300 * 198) == pytest.approx(0.15, abs=0.003)


def test_spans_are_as_long_as_spanberts():
    """Geometric with p = 0.2, no longer than 10, which makes 3.8 on average."""
    spec = make_spec(span=5.0, max_span=10)
    places, group = UNITS['span'](None, np.arange(20_000), 5000, seeded(), spec)
    lengths = np.bincount(group)
    assert lengths.max() == 10
    assert lengths.min() == 1
    assert lengths.mean() == pytest.approx(3.8, abs=0.25)
    assert len(set(places.tolist())) == lengths.sum() == 5000
    # Each is a run of neighbours.
    starts = np.cumsum(lengths) - lengths
    np.testing.assert_array_equal(places - places[starts][group], np.arange(5000) - starts[group])


def test_spans_share_a_fate():
    rng = seeded()
    spec = make_spec(unit='span', span=5.0, rate=0.1, random_rate=0.0, keep_rate=0.5, length=500)
    alike = []
    for _ in range(300):
        fields = masked(make_window(500, rng), rng, spec)
        chosen = fields['loss_weights'] > 0
        hidden = fields['inputs'] == spec.vocabulary.mask
        neighbours = chosen[1:] & chosen[:-1]
        alike += (hidden[1:] == hidden[:-1])[neighbours].tolist()
    assert np.mean(alike) > 0.9  # Half of them, if each token had its own; two spans may touch.


def draw(rng, n):
    """A document whose tokens are above all others'."""
    return np.concatenate([[BOS], rng.integers(500, 600, n - 1)]).astype(np.int32)


def ends_of(text):
    """Where sentences end that another follows: after the last of several marks."""
    return [i + 1 for i in range(len(text) - 1) if text[i] % 10 == 9 != text[i + 1] % 10]


def whole_sentences(tokens):
    """The text without what is cut off at either end, where two sentences are left."""
    text = text_of(tokens)
    parts = np.split(text, ends_of(text))  # The last has no end.
    kept = parts[int(tokens[0] != BOS) : len(parts) - int(tokens[-1] != EOS)]
    kept = [part for part in kept if len(part)]
    return np.concatenate(kept) if len(kept) > 1 else text


@pytest.mark.parametrize('pairs', ['next', 'order'])
def test_pairs(pairs):
    rng = seeded()
    spec = make_spec(size=600, pairs=pairs, length=43)
    labels = 0
    for i in range(2000):
        tokens = make_window(40, rng, 500, bos=i % 2 > 0, eos=i % 3 > 0)
        text = whole_sentences(tokens) if pairs == 'order' else text_of(tokens)
        fields = masked(tokens, rng, spec, draw)
        targets, types = fields['targets'], fields['token_types']
        assert len(targets) <= len(text) + 3
        assert (targets[0], targets[-1]) == (BOS, EOS)
        ends = np.flatnonzero(targets == EOS)
        assert len(ends) == 2
        np.testing.assert_array_equal(types, np.arange(len(targets)) > ends[0])
        first, second = targets[1 : ends[0]], targets[ends[0] + 1 : -1]
        assert len(first)
        assert len(second)
        assert fields['label_weights'].tolist() == [1.0] + [0.0] * (len(targets) - 1)
        label = fields['labels'][0]
        assert not fields['labels'][1:].any()
        labels += label
        assert not fields['loss_weights'][targets == EOS].any()
        if pairs == 'order':
            first, second = (second, first) if label else (first, second)
        elif label:
            assert (second >= 500).all()
            assert len(second) <= len(text) - len(first)
            assert len(targets) == len(first) + len(second) + 3
            second = text[len(first) :]
        np.testing.assert_array_equal(np.concatenate([first, second]), text)
        # Cut after a sentence, if there is one besides the last.
        if ends_of(text):
            assert len(first) in ends_of(text)
    assert share_is(labels, 2000, 0.5)


def test_the_other_text_begins_with_a_sentence_too():
    spec = make_spec(size=600, pairs='next', length=43)
    rng, labels = seeded(), 0
    for _ in range(300):
        other = rng.integers(500, 600, 43).astype(np.int32)
        fields = masked(make_window(40, rng, 500), rng, spec, lambda rng, n, other=other: other[:n])
        if fields['labels'][0]:
            labels += 1
            start = np.flatnonzero(fields['targets'] == EOS)[0] + 1
            second = fields['targets'][start:-1]
            begins = [*ends_of(other), 0][0]
            np.testing.assert_array_equal(second, other[begins : begins + len(second)])
    assert labels > 100


def test_a_text_of_one_token_is_no_pair():
    for pairs, tokens in itertools.product(['next', 'order'], [[1, 10, 2], [1, 2], [10], [2]]):
        fields = masked(tokens, seeded(), make_spec(pairs=pairs), draw)
        assert not fields['label_weights'].any()
