import collections
import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lm import config, tokenizer
from lm.data import features, pipeline, source
from lm.data.slices import Document, Slice
from lm.errors import InputError
from lm.rows import HostRows


def fields(tokens, rng, draw):
    """As `causal`, with a mark of the rng in the inputs; data/ does not import objectives/."""
    del draw
    size = len(tokens) - 1
    noise = rng.integers(1000, size=size, dtype=np.int32)
    weights = np.ones(size, np.float32)
    return {'inputs': tokens[:-1], 'targets': tokens[1:], 'loss_weights': weights, 'noise': noise}


def make_objective(length):
    return pipeline.Objective(
        fields,
        window=length + 1,
        least=2,
        sizes=lambda n: (n - 1, 0),
        length=length,
        overlap=1,
        slides=True,
    )


objective = make_objective(16)


def make_split(data):
    """Documents of many lengths in which every token is another character."""
    letters = itertools.count(0x4E00)
    sizes = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 7, 7, 7, 30, 64]
    texts = [''.join(chr(next(letters)) for _ in range(size)) for size in sizes]
    made = source.Source('made', lambda: map(Document, texts), lambda: texts, Slice())
    return features.tokenize(made, tokenizer.Chars(''.join(texts)), data, 'train')


@pytest.fixture
def data(config_data):
    return dataclasses.replace(config_data, length=16, batch_size=4)


@pytest.fixture
def split(data):
    return make_split(data)


def take(dataset, count, start=0):
    return [batch for _, batch in itertools.islice(pipeline.batches(dataset, start), count)]


def assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def scored(batches):
    """Every target of weight 1, with its document's BOS and EOS alike counted."""
    return collections.Counter(
        int(t) for b in batches for t in b['targets'][b['loss_weights'] > 0].ravel()
    )


def targets_of(split):
    stored = collections.Counter(split.tokens[:].tolist())
    del stored[tokenizer.BOS]
    return stored


@pytest.mark.parametrize('packing', [True, False])
def test_batches_keep_the_contract(packing, data, split):
    data = dataclasses.replace(data, packing=packing)
    for batch in take(pipeline.train_dataset(split, data, objective, seed=0), 6):
        for name, value in batch.items():
            assert value.shape == (4, 16)
            assert value.dtype == (np.float32 if name == 'loss_weights' else np.int32)
        real = batch['segment_ids'] > 0
        np.testing.assert_array_equal(real, batch['loss_weights'] > 0)
        np.testing.assert_array_equal(batch['targets'] == tokenizer.PAD, ~real)
        # Within a segment the next input is the target, and positions count on.
        same = (batch['segment_ids'][:, 1:] == batch['segment_ids'][:, :-1]) & real[:, 1:]
        np.testing.assert_array_equal(batch['inputs'][:, 1:][same], batch['targets'][:, :-1][same])
        step = np.diff(batch['positions'])
        assert (step[same] == 1).all()
        assert (batch['positions'][:, 1:][~same] == 0).all()
        assert packing or batch['segment_ids'].max() == 1


@pytest.mark.parametrize('packing', [True, False])
def test_each_epoch_has_every_target_once(packing, data, split):
    rows = len(pipeline.pack_split(split, objective, packing).rows)
    data = dataclasses.replace(data, packing=packing, batch_size=rows)
    epochs = take(pipeline.train_dataset(split, data, objective, seed=0), 3)
    for epoch in epochs:
        assert scored([epoch]) == targets_of(split)
    assert len({epoch['targets'].tobytes() for epoch in epochs}) == 3


def test_packing_holds_the_same_windows(data, split):
    def windows(packing):
        packed = pipeline.pack_split(split, objective, packing)
        return sorted(
            dataclasses.astuple(w) for i in range(len(packed.rows)) for w in packed.row(i)
        )

    assert windows(True) == windows(False)


@pytest.mark.parametrize('crop', [True, False])
def test_the_number_of_hosts_changes_nothing(crop, data, split):
    data = dataclasses.replace(data, random_crop=crop)
    one = take(pipeline.train_dataset(split, data, objective, seed=3), 20)
    for hosts in (2, 4):
        parts = [
            take(pipeline.train_dataset(split, data, objective, 3, HostRows(hosts, (host,))), 20)
            for host in range(hosts)
        ]
        joined = [
            {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
            for batch in zip(*parts, strict=True)
        ]
        assert_equal(one, joined)


def test_a_restart_continues_with_the_same_batches(data, split):
    data = dataclasses.replace(data, random_crop=True)
    one = take(pipeline.train_dataset(split, data, objective, seed=3), 20)
    assert_equal(one[7:], take(pipeline.train_dataset(split, data, objective, seed=3), 13, start=7))
    half = take(pipeline.train_dataset(split, data, objective, 3, HostRows(2, (1,))), 13, start=7)
    assert_equal([{k: v[2:] for k, v in batch.items()} for batch in one[7:]], half)
    indices = [
        i
        for i, _ in itertools.islice(
            pipeline.batches(pipeline.train_dataset(split, data, objective, seed=3), 7), 3
        )
    ]
    assert indices == [7, 8, 9]


def test_another_seed_is_another_order(data, split):
    one, other = (take(pipeline.train_dataset(split, data, objective, s), 4) for s in (0, 1))
    assert any((a['targets'] != b['targets']).any() for a, b in zip(one, other, strict=True))


def test_crops_begin_anywhere_and_stay_inside(data, split):
    packed, rng = pipeline.pack_split(split, objective, True), np.random.default_rng(0)
    starts = collections.defaultdict(set)
    for window in (window for i in range(len(packed.rows)) for window in packed.row(i)):
        for _ in range(400):
            cropped = pipeline._cropped(window, split.lengths - 1, data.length, rng)
            starts[window.document, window.size == data.length].add(cropped.start)
            assert cropped.start + cropped.size <= split.lengths[window.document] - 1
            assert cropped.size == window.size
    for (document, full), found in starts.items():
        room = split.lengths[document] - 1 - data.length
        assert found == set(range(room + 1)) if full else len(found) == 1


def test_crops_differ_between_epochs(data, split):
    rows = len(pipeline.pack_split(split, objective, True).rows)
    data = dataclasses.replace(data, random_crop=True, batch_size=rows)
    epochs = [pipeline.describe(split, data, objective, 0, epoch)['rows'] for epoch in range(3)]
    assert len({str(sorted(epoch)) for epoch in epochs}) == 3


@pytest.mark.parametrize('crop', [True, False])
def test_describe_names_what_is_in_the_batch(crop, data, split):
    data = dataclasses.replace(data, random_crop=crop)
    dataset = pipeline.train_dataset(split, data, objective, seed=5)
    for index in (0, 3, 11):
        told = json.loads(json.dumps(pipeline.describe(split, data, objective, 5, index)))
        assert told['batch'] == index
        for row, windows in enumerate(told['rows']):
            begins = [split.offsets[document] + start for document, start, _ in windows]
            expected = [
                split.tokens[a + 1 : a + 1 + size]
                for a, (_, _, size) in zip(begins, windows, strict=True)
            ]
            expected = np.concatenate(expected)
            np.testing.assert_array_equal(dataset[index]['targets'][row][: len(expected)], expected)


@pytest.mark.parametrize('stride', [0, 1, 5, 16])
@pytest.mark.parametrize('packing', [True, False])
@pytest.mark.parametrize('hosts', [1, 2])
def test_evaluation_scores_every_target_once(stride, packing, hosts, data, split):
    data = dataclasses.replace(data, packing=packing)
    parts = [
        take(
            pipeline.eval_dataset(split, data, objective, stride, 4, HostRows(hosts, (host,))),
            10**6,
        )
        for host in range(hosts)
    ]
    assert scored(sum(parts, [])) == targets_of(split)
    assert len({len(part) for part in parts}) == 1
    assert {batch['targets'].shape for part in parts for batch in part} == {(4 // hosts, 16)}


def test_evaluation_is_in_order_and_filled(data, split):
    dataset = pipeline.eval_dataset(
        split, dataclasses.replace(data, packing=False), objective, 0, 64
    )
    (batch,) = take(dataset, 2)
    real = batch['segment_ids'] > 0
    order = batch['targets'][real]
    stored = split.tokens[:]
    np.testing.assert_array_equal(order, stored[stored != tokenizer.BOS])
    assert (batch['targets'][~real] == 0).all()
    assert not batch['loss_weights'][~real].any()


def test_a_split_smaller_than_a_batch(data, split):
    data = dataclasses.replace(data, batch_size=1000)
    with pytest.raises(InputError, match=rf'has {split.num_targets} tokens .* 1000 rows x 16'):
        pipeline.train_dataset(split, data, objective, seed=0)
    assert (
        take(pipeline.eval_dataset(split, data, objective, 0, 1000), 9)[0]['inputs'].shape[0]
        == 1000
    )


def test_a_host_makes_any_rows(data, split):
    """Parts that do not lie side by side, and those that another host makes too."""
    one = take(pipeline.train_dataset(split, data, objective, seed=3), 5)
    for own in ((0, 2), (1, 3), (0, 1, 3), (2,)):
        made = take(pipeline.train_dataset(split, data, objective, 3, HostRows(4, own)), 5)
        assert_equal([{k: v[list(own)] for k, v in batch.items()} for batch in one], made)


PROGRAM = """
import hashlib, itertools, json, sys
sys.path.insert(0, sys.argv[1])
import test_pipeline as t
from lm.config import DataConfig
data = DataConfig(**json.loads(sys.argv[2]))
print(t.digest(t.make_split(data), data))
"""


def digest(split, data):
    total = hashlib.sha256()
    for batch in take(pipeline.train_dataset(split, data, objective, seed=9), 12):
        for name in sorted(batch):
            total.update(batch[name].tobytes())
    return total.hexdigest()


@pytest.mark.slow
def test_another_process_makes_the_same_batches(data, split):
    data = dataclasses.replace(data, random_crop=True)
    here = os.path.dirname(__file__)
    arguments = [sys.executable, '-c', PROGRAM, here, json.dumps(config.to_dict(data))]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'PYTHONHASHSEED': '7'}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split()[-1] == digest(split, data)
