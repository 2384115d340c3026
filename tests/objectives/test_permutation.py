import numpy as np
import pytest

from lm.objectives.permutation import permutation
from tests.objectives.specs import example, make_spec, make_window, plain, seeded, share_is, text_of


def test_permutation_by_hand():
    spec = make_spec(partial=2, max_span=2)
    assert plain(permutation([1, 10, 11, 12, 13, 2], seeded(2), spec)) == example(permutation)


def test_ranks_are_a_permutation_of_what_is_predicted():
    rng, spec = seeded(), make_spec()
    for n in range(4, 64):
        tokens = make_window(n, rng, eos=n % 2)
        fields = permutation(tokens, rng, spec)
        predicted = fields['loss_weights'] > 0
        assert predicted.any()
        ranks = fields['order'][predicted]
        assert sorted(ranks.tolist()) == list(range(1, predicted.sum() + 1))
        assert not fields['order'][~predicted].any()
        assert not predicted[0]
        np.testing.assert_array_equal(fields['targets'], tokens)
        np.testing.assert_array_equal(fields['inputs'], tokens)


def test_all_orders_are_as_likely():
    rng, spec = seeded(), make_spec(partial=1, max_span=1)
    orders = [tuple(permutation([10, 11, 12], rng, spec)['order'].tolist()) for _ in range(6000)]
    assert len(set(orders)) == 6
    assert all(share_is(orders.count(order), 6000, 1 / 6) for order in set(orders))


@pytest.mark.parametrize(('partial', 'longest'), [(6, 5), (6, 10), (3, 2), (1, 5)])
def test_one_in_k_is_predicted_in_spans(partial, longest):
    rng, spec = seeded(), make_spec(length=500, partial=partial, max_span=longest)
    shares, runs = [], []
    for _ in range(1000):
        predicted = permutation(make_window(500, rng, bos=False, eos=False), rng, spec)['order'] > 0
        shares.append(predicted.mean())
        edges = np.flatnonzero(np.diff(predicted.astype(int), prepend=0, append=0))
        runs += (edges[1::2] - edges[::2]).tolist()
    error = np.std(shares) / 1000**0.5
    assert abs(np.mean(shares) - 1 / partial) <= 5 * error
    if partial == 6:  # Spans seldom touch.
        assert max(runs) <= 2 * longest  # Two spans may touch.
        assert np.mean(runs) == pytest.approx((1 + longest) / 2, rel=0.1)


def test_half_of_the_windows_are_turned_around():
    rng, spec = seeded(), make_spec(bidirectional=True)
    turned = 0
    for _ in range(2000):
        tokens = make_window(30, rng)
        inputs = permutation(tokens, rng, spec)['inputs']
        assert (inputs[0], inputs[-1]) == (tokens[0], tokens[-1])
        backwards = (inputs != tokens).any()
        turned += backwards
        text = text_of(tokens)[::-1] if backwards else text_of(tokens)
        np.testing.assert_array_equal(text_of(inputs), text)
    assert share_is(turned, 2000, 0.5)
