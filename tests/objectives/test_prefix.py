import numpy as np

from lm.objectives.causal import causal
from lm.objectives.prefix import prefix
from tests.objectives.specs import example, make_spec, make_window, plain, seeded, share_is


def test_prefix_by_hand():
    assert plain(prefix([1, 10, 11, 12, 2], seeded(1), make_spec())) == example(prefix)


def test_what_is_scored_was_not_seen():
    """Place i sees the prefix and places up to i; its target stands at place i + 1."""
    rng = seeded()
    for n in range(2, 40):
        tokens = make_window(n, rng)
        fields = prefix(tokens, rng, make_spec())
        place = np.arange(n - 1)
        sees = (place[None] <= place[:, None]) | fields['in_prefix'][None]
        scored = fields['loss_weights'] > 0
        assert not sees[place[:-1], place[1:]][scored[:-1]].any()
        # And all that can be scored is.
        assert scored[-1]
        np.testing.assert_array_equal(~sees[place[:-1], place[1:]], scored[:-1])
        for name in ('inputs', 'targets'):
            np.testing.assert_array_equal(fields[name], causal(tokens, None)[name])


def test_all_lengths_of_prefix_are_as_likely():
    rng, tokens = seeded(), make_window(6, seeded())
    sizes = [prefix(tokens, rng, make_spec())['in_prefix'].sum() for _ in range(5000)]
    counts = np.bincount(sizes, minlength=6)
    assert counts[0] == 0
    assert len(counts) == 6
    assert all(share_is(count, 5000, 1 / 5) for count in counts[1:])
