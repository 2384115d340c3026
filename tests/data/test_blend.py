"""Several corpora as one stream: how many rows of each, which, and the same however it is made."""

import dataclasses
import itertools
import json
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm import tokenizer
from lm.data import blend, features, mixture, pipeline, source
from lm.data.slices import Document, Slice
from lm.errors import InputError
from lm.rows import HostRows
from tests.data.test_pipeline import assert_equal, objective, take

SIZES = {'a': [5, 40, 7, 33, 16], 'b': [90, 12, 3, 60, 8, 8, 25], 'c': [30] * 20}
STEPS = 40


def make_splits(data):
    """Of each corpus documents of its sizes, in which every token is another character."""
    letters = itertools.count(0x4E00)
    texts = {
        name: [''.join(chr(next(letters)) for _ in range(size)) for size in sizes]
        for name, sizes in SIZES.items()
    }
    text = tokenizer.Chars(''.join(itertools.chain.from_iterable(texts.values())))
    return {
        name: features.tokenize(
            source.Source(
                name, lambda some=some: map(Document, some), lambda some=some: some, Slice()
            ),
            text,
            data,
            'train',
        )
        for name, some in texts.items()
    }


@pytest.fixture
def data(config_data):
    return dataclasses.replace(config_data, train='', length=16, batch_size=4)


@pytest.fixture
def make(data):
    """Builds what is said of each corpus: weight, epochs ..."""
    splits = make_splits(data)

    def build(named, steps=STEPS, **changes):
        given = {name: {'source': name} | more for name, more in named.items()}
        changed = dataclasses.replace(data, corpora=types.MappingProxyType(given), **changes)
        chosen = {name: splits[name] for name in named}
        return blend.build(chosen, changed, objective, 7, steps)

    build.splits = splits
    return build


# ------------------------------------------------------------------------------- how many

CORPORA = {
    'a': {'weight': 1.0, 'final_weight': 0.0},
    'b': {'weight': 1.0, 'final_weight': 3.0},
    'c': {'weight': 2.0, 'final_weight': 1.0},
}


def shares(rates, rows, step, steps):
    """What part each should be, from the definitions in `configs/base.py`."""
    done = step / (steps - 1)
    found = {
        'fixed': [1, 1, 2],
        'proportional': [rows[0], rows[1], 2 * rows[2]],
        'temperature': [rows[0] ** 0.25, rows[1] ** 0.25, 2 * rows[2] ** 0.25],
        'scheduled': [1 - done, 1 + 2 * done, 2 - done],
    }[rates]
    return np.array(found) / sum(found)


@pytest.mark.parametrize('rates', mixture.BY_STEP)
def test_shares_are_exact_within_a_row_at_every_step(rates, make):
    made = make(CORPORA, rates=rates, rates_temperature=4.0)
    rows = [len(packed.rows) for packed in made.packed]
    due = np.zeros(3)
    for step in range(STEPS):
        assert (made.counts[step].sum(), made.counts.dtype) == (4 * step, np.int64)
        assert (abs(made.counts[step] - due) < 1).all()
        expected = shares(rates, rows, step, STEPS)
        np.testing.assert_allclose([*made.rates(step).values()], expected)
        due += 4 * expected
    assert made.changes == (rates == 'scheduled')
    assert made.rows == sum(rows)


def test_a_limit_counts_for_large_corpora(make):
    rows = [len(packed.rows) for packed in make(CORPORA).packed]
    assert min(rows) < 15 < max(rows)
    made = make({name: {} for name in 'abc'}, rates='proportional', rates_limit=15)
    some = np.minimum(rows, 15)
    np.testing.assert_allclose([*made.rates(0).values()], some / some.sum())


def test_a_corpus_comes_to_its_epochs_exactly_and_the_others_share_what_it_had(make):
    made = make({'a': {'epochs': 2, 'weight': 3}, 'b': {'epochs': 0.5}, 'c': {'weight': 3}})
    a, b, c = (len(packed.rows) for packed in made.packed)
    last = made.counts[-1]
    assert last[:2].tolist() == [2 * a, round(0.5 * b)]
    assert last.sum() == 4 * STEPS
    for column, most in ((0, 2 * a), (1, round(0.5 * b))):
        over = made.counts[:, column] == most
        assert not over[0]
        assert over[np.argmax(over) :].all()  # From there on it has no more.
    named = dict(zip('abc', made.counts.T, strict=True))
    only_c = int(np.argmax((named['a'] == 2 * a) & (named['b'] == round(0.5 * b))))
    assert (np.diff(named['c'])[only_c:] == 4).all()
    assert [*made.rates(0).values()] == pytest.approx([3 / 7, 1 / 7, 3 / 7])
    assert made.rates(STEPS - 1) == {'a': 0, 'b': 0, 'c': 1}
    assert made.changes
    seen = made.seen(STEPS)
    assert [each['epochs'] for each in seen] == [2, round(0.5 * b) / b, last[2] / c]
    assert sum(each['share'] for each in seen) == pytest.approx(1)
    assert [each['rows_seen'] for each in made.seen(3)] == made.counts[3].tolist()


def test_what_is_due_where_rows_are_used_up_within_a_step():
    even = np.full((4, 2), 0.5)
    expected = [[0, 0], [1, 1], [2, 2], [2.5, 3.5], [2.5, 5.5]]
    np.testing.assert_array_equal(blend.due(even, 2, np.array([2.5, np.inf])), expected)
    # The second is used up in the step in which the first is, by what that one left.
    third = np.full((2, 3), [0.4, 0.4, 0.2])
    expected = [[0, 0, 0], [3, 4, 3], [3, 4, 13]]
    np.testing.assert_allclose(blend.due(third, 10, np.array([3, 4, np.inf])), expected)


@pytest.mark.parametrize('epochs', [0.5, 1, 2.05])
def test_all_that_there_is_may_be_used_but_no_more(epochs, make):
    """Each of the 20 documents of c is a row of 16 targets and one of 15."""
    steps, left = divmod(round(epochs * 40), 4)
    made = make({'c': {'epochs': epochs}}, steps)
    assert made.counts[-1] == [40 * epochs - left]
    match = f'all rows are used up in step {steps + 1} of {steps + 1}'
    with pytest.raises(InputError, match=match) as error:
        make({'c': {'epochs': epochs}}, steps + 1)
    assert '\n' not in str(error.value)


def test_what_has_no_rate_when_the_others_are_used_up_is_no_help(make):
    """Corpus c ends as a begins: at the first step it has the only rate, and it has 2 rows."""
    named = {'a': {'weight': 0, 'final_weight': 1}, 'c': {'epochs': 0.05, 'final_weight': 0}}
    with pytest.raises(InputError, match='all rows are used up in step 1 of 40'):
        make(named, rates='scheduled')


@st.composite
def rates(draw):
    corpora, steps = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    whole = st.lists(st.integers(0, 20), min_size=corpora, max_size=corpora).filter(any)
    first, last = (np.array(draw(whole), float) for _ in range(2))
    done = np.linspace(0, 1, steps)[:, None]
    found = (1 - done) * first + done * last
    return found / found.sum(axis=1, keepdims=True), draw(st.integers(1, 5))


def assert_never_off_by_one(wanted, size):
    due = blend.due(wanted, size, np.full(wanted.shape[1], np.inf))
    found = blend.whole(due, size)
    assert (abs(found - due) < 1).all()
    assert (np.diff(found, axis=0) >= 0).all()
    np.testing.assert_array_equal(found.sum(axis=1), size * np.arange(len(found)))


@given(rates())
def test_whole_rows_are_never_off_by_one(drawn):
    assert_never_off_by_one(*drawn)


@pytest.mark.parametrize('weights', [(6, 1, 1, 6), (1, 11, 11, 1, 11)])
def test_what_is_due_first_comes_first(weights):
    """Who waited longest, and of whom most is due, would here leave others behind by a row."""
    even = np.array(weights) / sum(weights)
    assert_never_off_by_one(np.broadcast_to(even, (30, len(weights))), 1)


def test_whole_rows_by_hand():
    due = np.arange(5)[:, None] * np.array([0.5, 0.25, 0.25])
    expected = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1]]
    np.testing.assert_array_equal(blend.whole(due, 1), expected)


# ------------------------------------------------------------------------------- which


def made_alone(dataset, count=12, start=0):
    return [dataset[start + step] for step in range(count)]


def test_a_batch_is_the_same_however_it_is_made(make):
    made = make(CORPORA, rates='scheduled', random_crop=True)
    batches = made_alone(made.dataset())
    assert_equal(batches[5:], take(made.dataset(), 7, start=5))
    again = make(CORPORA, rates='scheduled', random_crop=True).dataset()
    assert_equal(batches[-1:], [again[11]])
    for hosts in (2, 4):
        parts = [made_alone(made.dataset(HostRows(hosts, (host,)))) for host in range(hosts)]
        joined = [
            {name: np.concatenate([part[name] for part in step]) for name in step[0]}
            for step in zip(*parts, strict=True)
        ]
        assert_equal(batches, joined)
    assert_equal(batches[:2], made_alone(made.dataset(), 2, start=STEPS))  # Never learnt from.


@pytest.mark.parametrize('named', [{'b': {}}, {'b': {}, 'c': {'weight': 0}}])
def test_one_corpus_is_the_source_alone(named, make, data):
    data = dataclasses.replace(data, random_crop=True)
    alone = blend.build({'': make.splits['b']}, data, objective, 7, STEPS)
    expected = made_alone(pipeline.train_dataset(make.splits['b'], data, objective, 7))
    assert_equal(made_alone(alone.dataset()), expected)
    made = make(named, random_crop=True)
    assert_equal(made_alone(made.dataset()), expected)
    without = {'name', 'source'}
    one, other = (
        [{k: v for k, v in each.items() if k not in without} for each in found.seen(9)]
        for found in (made, alone)
    )
    assert one[0] == other[0]


def test_rows_of_a_corpus_are_those_of_a_run_of_it_alone(make, data):
    made = make(CORPORA)
    batches = made_alone(made.dataset())
    for number, name in enumerate(SIZES):
        alone = dataclasses.replace(data, batch_size=1)
        alone = pipeline.train_dataset(make.splits[name], alone, objective, 7 + number)
        found = [
            {field: value[place : place + 1] for field, value in batch.items()}
            for step, batch in enumerate(batches)
            for place, (corpus, _) in enumerate(made.chosen(step))
            if corpus == number
        ]
        assert len(found) == made.counts[12][number]
        assert_equal(found, made_alone(alone, len(found)))


def test_each_corpus_is_spread_over_the_batch(make):
    made = make({'a': {}, 'b': {'weight': 3}}, batch_size=8)
    places = [[corpus for corpus, _ in made.chosen(step)] for step in range(3)]
    assert places == [[1, 0, 1, 1, 1, 0, 1, 1]] * 3


def test_a_batch_is_described_by_its_documents(make):
    made = make(CORPORA)
    told = json.loads(json.dumps(made.describe(5)))
    batch = made.dataset()[5]
    assert told['source'] == {name: name for name in SIZES}
    assert told['cache'] == {name: split.key for name, split in make.splits.items()}
    for row, (name, windows) in enumerate(told['rows']):
        expected = [
            make.splits[name].document(document)[start + 1 : start + 1 + size]
            for document, start, size in windows
        ]
        targets = batch['targets'][row]
        np.testing.assert_array_equal(targets[targets > 0], np.concatenate(expected))


# ------------------------------------------------------------------------------- what cannot be


def test_pairs_and_single_texts_do_not_mix(make, data):
    """Not even for an objective that learns from either."""
    either = dataclasses.replace(objective, takes=frozenset({'text', 'pair'}))
    splits = make.splits | {'b': dataclasses.replace(make.splits['b'], paired=True)}
    given = types.MappingProxyType({name: {'source': name} for name in SIZES})
    data = dataclasses.replace(data, corpora=given)
    with pytest.raises(InputError, match="'b' is of pairs and '.' of single texts; all must be"):
        blend.build(splits, data, either, 0, 5)
