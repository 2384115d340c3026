"""A run whose training text is augmented."""

import numpy as np
import pytest
from ml_collections import ConfigDict

import lm
from lm import config as configs
from lm import run as runs
from lm.data import pipeline
from lm.errors import InputError

pytestmark = pytest.mark.usefixtures('two_devices')


def build(folder, augment, corpora=None, **sections):
    (folder / 'text.txt').write_text('abcdefgh\n' * 40)
    config = lm.get_config(
        'base',
        data={'train': f'text:{folder}/text.txt', 'valid': f'text:{folder}/text.txt', 'test': ''}
        | {'document': 'line', 'length': 16, 'batch_size': 8, 'augment': augment},
        tokenizer={'kind': 'bytes'},
        model={'num_layers': 1, 'embed_dim': 32, 'num_heads': 2},
        **sections,
    )
    if corpora:
        config.data.train, config.data.corpora = '', ConfigDict(corpora)
    parsed = configs.parse(config)
    return runs.build(parsed, runs.build_tokenizer(parsed, folder / 'run'), runs.check_mesh(parsed))


def batches(run, start, count):
    splits = {
        task: runs.tokenized_splits(part.config, part.tokenizer) for task, part in run.tasks.items()
    }
    items = runs.mixture(run, runs.blends(run, splits)).items({'next_index': start})
    return [next(items).batch['inputs'] for _ in range(count)], splits['']['valid']


def test_batches_are_augmented_and_evaluation_is_not(tmp_path):
    plain, other = (build(tmp_path, augment) for augment in ((), ('swap 0.5', 'insert 0.2')))
    before, _ = batches(plain, 0, 5)
    after, valid = batches(other, 0, 5)
    text = np.array([1, *(ord(c) + 4 for c in 'abcdefgh')])
    assert all((inputs[:, :9] == text).all() for inputs in before)
    assert all((inputs[:, :9] != text).any() for inputs in after)
    again, _ = batches(other, 3, 2)
    for one, two in zip(after[3:], again, strict=True):
        np.testing.assert_array_equal(one, two)
    data = other.config.data
    evaluated = pipeline.eval_dataset(valid, data, other.objective, 0, data.batch_size)
    assert (evaluated[0]['inputs'][:, :9] == text).all()


def test_corpora_are_augmented_each_by_its_own_frequencies(tmp_path):
    (tmp_path / 'zs.txt').write_text('zzzz\n' * 40)
    corpora = {
        'letters': {'source': f'text:{tmp_path}/text.txt'},
        'zs': {'source': f'text:{tmp_path}/zs.txt'},
    }
    run = build(tmp_path, ('replace_unigram 1', 'insert 0.5'), corpora)
    found, _ = batches(run, 0, 6)
    text = {*range(ord('a') + 4, ord('h') + 5), ord('z') + 4}
    rows = [{*row.tolist()} & text for inputs in found for row in inputs]
    assert not any(ord('z') + 4 in row and len(row) > 1 for row in rows)
    assert sum(ord('z') + 4 in row for row in rows) == len(rows) / 2
    again, _ = batches(run, 4, 2)
    for one, two in zip(found[4:], again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_does_not_go_together_is_said_before_anything_is_read(tmp_path):
    for augment, message in (
        ('bpe_dropout 0.1', "needs a sentencepiece tokenizer of config.tokenizer.kind = 'bpe'"),
        ('swap 2', 'has a rate of 2'),
        ('swop 0.1', "Did you mean 'swap'"),
    ):
        with pytest.raises(InputError, match=message):
            build(tmp_path, (augment,))
