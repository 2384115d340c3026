"""Which task a step is of: rates, draws, and that a stream goes on as if it had not stopped."""

import itertools
import json
import math

import numpy as np
import pytest

from lm.config import MultitaskConfig
from lm.data import mixture, pipeline
from lm.data.mixture import Facts, Mixture, Tasks
from lm.errors import InputError

TASKS = Tasks(
    ('a', 'b', 'c'),
    np.array([1.0, 1.0, 2.0]),
    np.array([0.0, 3.0, 1.0]),
    np.array([100.0, 400.0, 10_000.0]),
)


def options(rates='fixed', mode='alternating', **more):
    return MultitaskConfig(
        **{'temperature': 2.0, 'limit': 0, 'every': 10, 'asymmetry': 1.0, **more},
        mode=mode,
        rates=rates,
    )


@pytest.fixture(autouse=True)
def numbers_for_batches(monkeypatch):
    """A data set is its name; its batches are (name, number)."""
    monkeypatch.setattr(
        pipeline, 'batches', lambda name, start: ((n, (name, n)) for n in itertools.count(start))
    )


def make(tasks=TASKS, steps=101, ahead=2, **more):
    return Mixture({n: n for n in tasks.names}, tasks, options(**more), steps, 7, ahead)


@pytest.mark.parametrize(
    ('rates', 'more', 'step', 'expected'),
    [
        ('fixed', {}, 0, [1, 1, 2]),
        ('proportional', {}, 50, [100, 400, 20_000]),
        ('proportional', {'limit': 200}, 50, [100, 200, 400]),
        ('temperature', {}, 0, [10, 20, 200]),
        ('temperature', {'temperature': 1e9}, 0, [1, 1, 2]),
        ('scheduled', {}, 0, [1, 1, 2]),
        ('scheduled', {}, 50, [0.5, 2, 1.5]),
        ('scheduled', {}, 100, [0, 3, 1]),
    ],
)
def test_rates_of_a_step(rates, more, step, expected):
    found = make(rates=rates, **more).rates(step)
    np.testing.assert_allclose(found, np.array(expected) / sum(expected))


def test_rates_that_follow_the_training():
    facts = Facts(
        np.array([4.0, 2.0, np.nan]), np.array([2.0, 2.0, np.nan]), np.array([1.0, 3.0, 0.0])
    )
    # Left: half, all, and the mean of these for what is not known.
    np.testing.assert_allclose(
        mixture.progress(TASKS, options(), facts), np.array([0.5, 1, 0.75 * 2]) / 0.75
    )
    np.testing.assert_allclose(
        mixture.progress(TASKS, options(asymmetry=2.0), facts),
        np.array([0.25, 1, 0.75**2 * 2]) / 0.75**2,
    )
    np.testing.assert_allclose(
        mixture.gradient_norm(TASKS, options(), facts), np.array([0.5, 1 / 3, 0.75]) / 0.75
    )
    np.testing.assert_allclose(mixture.uncertainty(TASKS, options(), facts), [0.5, 0.5, 1.0])


def test_gradients_are_then_as_long_as_they_should_be():
    """GradNorm: rate x norm is in proportion to the power of the inverse training rate."""
    facts = Facts(np.array([4.0, 2.0, 3.0]), np.array([1.0, 1.5, 2.0]), np.array([9.0, 0.1, 2.0]))
    even = Tasks(TASKS.names, np.ones(3), np.ones(3), TASKS.rows)
    lengths = mixture.gradient_norm(even, options(asymmetry=1.5), facts) * facts.norm
    left = facts.last / facts.first
    np.testing.assert_allclose(lengths / lengths[0], (left / left[0]) ** 1.5)


def test_a_task_is_drawn_by_its_rate_and_no_batch_is_left_out():
    seen = list(itertools.islice(make().items({'next_index': 0}), 4000))
    counts = dict.fromkeys(TASKS.names, 0)
    for item in seen:
        ((name, number),) = item.numbers.items()
        assert item.batch == {name: (name, number)}
        assert number == counts[name]
        counts[name] += 1
        assert item.taken == counts
    for name, rate in zip('abc', (0.25, 0.25, 0.5), strict=True):
        assert abs(counts[name] - 4000 * rate) < 5 * math.sqrt(4000 * rate * (1 - rate))


def test_jointly_each_step_has_all():
    items = itertools.islice(make(mode='joint').items({'next_index': 0}), 3)
    assert [item.numbers for item in items] == [{'a': n, 'b': n, 'c': n} for n in range(3)]


def test_a_single_task_is_a_plain_stream():
    one = Tasks(('',), np.ones(1), np.ones(1), np.ones(1))
    made = make(one)
    items = list(itertools.islice(made.items({'next_index': 5}), 3))
    assert [item.batch for item in items] == [('', 5), ('', 6), ('', 7)]
    assert made.state(items[-1]) == {'next_index': 8}


def losses(step, item):
    """Some that fall at their own speeds."""
    speeds = {'a': 0.0, 'b': 0.05, 'c': 0.01}
    return {
        name: (3 * math.exp(-speeds[name] * step), 1 + step % 3 + (name == 'a'))
        for name in item.numbers
    }


def run(made, state, steps, ahead=3):
    """Takes steps, each item `ahead` of when it is observed, as the loop does. Returns items, states."""
    stream, items, states = made.items(state), [], []
    queue = [next(stream) for _ in range(ahead)]
    for _ in range(steps):
        queue.append(next(stream))
        item = queue.pop(0)
        made.observe(item.step, losses(item.step, item))
        items.append(item)
        states.append(json.dumps(made.state(item)))
    return items, states


@pytest.mark.parametrize('mode', mixture.MODES)
@pytest.mark.parametrize('rates', [*mixture.BY_STEP, *mixture.BY_LOSS])
@pytest.mark.parametrize('stop', [1, 9, 10, 11, 37])
def test_resume_is_uninterrupted(rates, mode, stop):
    items, states = run(make(rates=rates, mode=mode), {'next_index': 0}, 60)
    again, more = run(make(rates=rates, mode=mode), json.loads(states[stop - 1]), 60 - stop)
    assert again == items[stop:]
    assert more == states[stop:]


@pytest.mark.parametrize('rates', mixture.BY_LOSS)
def test_rates_follow_what_was_measured(rates):
    items, _ = run(make(rates=rates), {'next_index': 0}, 200)
    shares = [tuple(item.rates.values()) for item in items]
    assert set(shares[:20]) == {(0.25, 0.25, 0.5)}  # Nothing is known yet.
    assert len(set(shares)) > 15
    assert min(min(share) for share in shares) >= 0.1 / 3 - 1e-9
    assert all(math.isclose(sum(share), 1) for share in shares)
    slow, fast = shares[-1][0], shares[-1][1]
    assert (slow > fast) == (rates != 'uncertainty')  # That is for the small loss.


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ({'rates': 'fixd'}, "Did you mean 'fixed'"),
        ({'mode': 'join'}, "Did you mean 'joint'"),
        ({'rates': 'progress', 'every': 5}, 'the least is 6'),
    ],
)
def test_what_cannot_be(more, message):
    with pytest.raises(InputError, match=message):
        make(**more)
