"""Codes from a source to the windows of a batch."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from lm import tokenizer
from lm.data import features, pipeline, source
from lm.errors import InputError
from tests.data.test_pipeline import objective, scored, take, targets_of

IDS = {'news': 260, 'fiction': 261, 'title=': 262, 'words<3': 263}
RECORDS = [
    {'text': 'a b', 'genre': 'news', 'title': 'T'},
    {'text': 'the cat sat on the mat, and the dog saw it', 'genre': 'fiction', 'title': None},
    {'text': 'c d e', 'genre': ['news', 'fiction'], 'title': ''},
    {
        'text': 'what stands here is longer than two windows, or three',
        'genre': 'news',
        'title': 'U',
    },
]
EXPECTED = [[260, 263, 262, 88, 262], [261], [260, 261], [260, 262, 89, 262]]


@pytest.fixture
def folder(tmp_path):
    text = ''.join(json.dumps(record) + '\n' for record in RECORDS)
    (tmp_path / 'a.jsonl').write_text(text)
    (tmp_path / 'a.txt').write_text('one\ntwo three four\n')
    return tmp_path


def tokenized(spec, data, ids=IDS):
    return features.tokenize(source.parse(spec, data), tokenizer.Bytes(), data, 'train', ids)


@pytest.fixture
def data(config_data):
    return dataclasses.replace(config_data, document='line', length=16, batch_size=1)


@pytest.fixture
def split(folder, data):
    return tokenized(f'jsonl:{folder}/a.jsonl#text{{genre,title}}', data)


def test_fields_and_lengths_become_codes(split):
    assert [split.codes_of(i).tolist() for i in range(4)] == EXPECTED
    assert split.num_codes.tolist() == [5, 1, 2, 4]
    assert split.num_targets == sum(len(record['text']) + 1 for record in RECORDS)


def test_constants_are_codes_of_every_document(folder, data):
    split = tokenized(f'text:{folder}/a.txt#{{=fiction,=title=X}}', data)
    assert [split.codes_of(i).tolist() for i in range(2)] == [
        [261, 263, 262, 92, 262],
        [261, 262, 92, 262],
    ]
    split = tokenized(f'jsonl:{folder}/a.jsonl#{{=news,title}}[:1]', data)
    assert split.codes_of(0).tolist() == [260, 263, 262, 88, 262]


def test_columns_hold_codes_too(folder, data):
    (folder / 'a.tsv').write_text('text\tgenre\tlabel\na b\tnews\t1\nc d e\t\t0\n')
    split = tokenized(f'tsv:{folder}/a.tsv#text=label{{genre}}', data)
    assert [split.codes_of(i).tolist() for i in range(2)] == [[260, 263], []]
    assert split.labels.tolist() == [0, 1]


def test_without_codes_all_is_as_before(folder, data):
    split = tokenized(f'jsonl:{folder}/a.jsonl', data, {})
    assert split.codes is None
    assert split.codes_of(1).tolist() == []
    assert split.num_codes.tolist() == [0] * 4


def test_the_cache_knows_codes_by_their_ids(folder, data):
    spec = f'jsonl:{folder}/a.jsonl#text{{genre}}'
    first, again = tokenized(spec, data), tokenized(spec, data)
    np.testing.assert_array_equal(first.codes, again.codes)
    moved = tokenized(spec, data, {name: i + 7 for name, i in IDS.items()})
    np.testing.assert_array_equal(moved.codes, first.codes + 7)
    keys = {first.key, moved.key, tokenized(f'jsonl:{folder}/a.jsonl', data).key}
    assert len(keys) == 3
    # A damaged file is made anew.
    path = features.cache_dir(data) / first.key / 'codes.npy'
    path.write_bytes(path.read_bytes()[:40])
    np.testing.assert_array_equal(tokenized(spec, data).codes, first.codes)


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('jsonl:{}/a.jsonl#text{{gemre}}', "has no field 'gemre'. Did you mean 'genre'"),
        ('jsonl:{}/a.jsonl#text{{genre,=fction}}', "'fction' is not known. Did you mean 'fiction'"),
        ('jsonl:{}/a.jsonl#text{{title,text}}', "the code 'a b' is not known"),
        ('text:{}/a.txt#{{genre}}', "no field 'genre' that says codes; write '{=genre}'"),
        ('text:{}/a.txt#{{}}', 'does not say codes'),
        ('text:{}/a.txt#{{=}}', 'does not say codes'),
        ('parallel:{0}/a.txt,{0}/a.txt#{{=news}}', 'is of pairs, which take no codes'),
        ('builtin:pydocs#{{topic}}[valid]', "no field 'topic' that says codes"),
    ],
)
def test_what_is_wrong_is_named(spec, message, folder, data):
    with pytest.raises(InputError, match=message):
        tokenized(spec.format(folder), data)


def test_a_field_of_another_type_is_named(folder, data):
    (folder / 'b.jsonl').write_text('{"text": "a", "year": {}}\n')
    with pytest.raises(InputError, match="b.jsonl:1: the field 'year' is not text but dict"):
        tokenized(f'jsonl:{folder}/b.jsonl#text{{year}}', data)


def segments(batch):
    """The inputs, targets and weights of each window in a batch of one host."""
    for row, ids in enumerate(batch['segment_ids']):
        for segment in range(1, ids.max() + 1):
            here = ids == segment
            yield tuple(batch[k][row][here].tolist() for k in ('inputs', 'targets', 'loss_weights'))


@pytest.mark.parametrize('packing', [True, False])
@pytest.mark.parametrize('stride', [0, 3])
def test_every_window_begins_with_its_codes_and_scores_each_token_once(
    packing, stride, data, split
):
    data = dataclasses.replace(data, packing=packing, code_dropout=1.0)  # Not in evaluation.
    batches = take(pipeline.eval_dataset(split, data, objective, stride, 1), 10**6)
    assert scored(batches) == targets_of(split)
    assert {batch['targets'].shape for batch in batches} == {(1, 16)}
    begins = collections.Counter()
    for inputs, targets, weights in (part for batch in batches for part in segments(batch)):
        text = inputs[1:] if inputs[0] == tokenizer.BOS else inputs
        codes = next(codes for codes in EXPECTED if text[: len(codes)] == codes)
        begins[inputs[0] == tokenizer.BOS, tuple(codes)] += 1
        assert not any(weights[: len(codes)])
        assert not any(t >= 260 for t, weight in zip(targets, weights, strict=True) if weight)
        assert not any(token >= 260 for token in text[len(codes) :])
    assert sum(count for (first, _), count in begins.items() if first) == 4
    assert begins[False, tuple(EXPECTED[3])] >= 3  # Windows from the middle.


@pytest.mark.slow
@pytest.mark.parametrize('crop', [True, False])
def test_dropout_leaves_out_all_codes_of_a_window_at_its_rate(crop, data, split):
    data = dataclasses.replace(data, code_dropout=0.25, random_crop=crop)
    dataset = pipeline.train_dataset(split, data, objective, seed=1)
    batches = take(dataset, 400)
    kept = []
    for inputs, targets, weights in (part for batch in batches for part in segments(batch)):
        text = inputs[1:] if inputs[0] == tokenizer.BOS else inputs
        codes = next((codes for codes in EXPECTED if text[: len(codes)] == codes), [])
        kept.append(bool(codes))
        assert weights == [0.0] * len(codes) + [1.0] * (len(targets) - len(codes))
        assert not any(token >= 260 for token in text[len(codes) :])
    rate = 1 - np.mean(kept)
    assert abs(rate - 0.25) < 5 * (0.25 * 0.75 / len(kept)) ** 0.5
    # The same for the same (seed, index).
    for batch, again in zip(batches[7:], take(dataset, 393, start=7), strict=True):
        np.testing.assert_array_equal(batch['inputs'], again['inputs'])


def test_codes_take_at_most_half_a_row(folder, data):
    (folder / 'long.jsonl').write_text(json.dumps({'text': 'abcdefghijk', 'title': 't' * 50}))
    split = tokenized(f'jsonl:{folder}/long.jsonl#text{{title}}', data)
    batches = take(pipeline.eval_dataset(split, data, objective, 0, 1), 10)
    parts = [part for batch in batches for part in segments(batch)]
    assert [inputs[:2] for inputs, _, _ in parts] == [[1, 263], [263, 262]]
    assert [sum(weights) for _, _, weights in parts] == [8, 4]


def test_a_stride_longer_than_what_codes_leave(data, split):
    with pytest.raises(
        InputError, match=r'stride = 13 is more than .*length = 15, less codes = 11'
    ):
        pipeline.eval_dataset(split, data, objective, 13, 1)


@pytest.mark.slow
def test_crops_of_documents_with_codes_begin_anywhere(data, split):
    data = dataclasses.replace(data, random_crop=True)
    rows = [pipeline.describe(split, data, objective, 1, i)['rows'] for i in range(200)]
    windows = [w for batch in rows for row in batch for w in row if w[0] == 3]
    full = {start for _, start, size in windows if size == 16 - len(EXPECTED[3])}
    last = split.lengths[3] - 1 - 12
    assert full <= set(range(last + 1))
    assert len(full) > last // 2
