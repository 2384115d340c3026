"""TFDS data sets with the names and features of the catalogue, prepared and read without TensorFlow."""

import csv
import dataclasses
import gzip
import itertools
import json
import sys

import pytest

from lm.data import source
from lm.errors import InputError

RECORDS = 60


def lines(path):
    with gzip.open(path, 'rt', encoding='utf-8', newline='\n') as file:
        return list(itertools.islice(file, RECORDS))


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, shared_data):
    """Returns (folder, {(name, split): records}) of five data sets."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    folder = tmp_path_factory.mktemp('tfds')
    news = [
        row for row in csv.reader(lines(shared_data / 'ag_news/test.tsv.gz'), delimiter='\t') if row
    ]
    english, german = (lines(shared_data / f'multi30k/val.{k}.gz') for k in ('en', 'de'))
    pairs = [{'en': a, 'de': b} for a, b in zip(english, german, strict=True)]
    reviews = [json.loads(line) for line in lines(shared_data / 'imdb_subset/train.jsonl.gz')]
    contents = {
        'Lm1b': (
            {'text': text},
            [{'text': t[:-1]} for t in lines(shared_data / 'brown/brown.txt.gz')],
        ),
        'ImdbReviews': (
            {'label': tfds.features.ClassLabel(names=['neg', 'pos']), 'text': text},
            [{'label': r['label'], 'text': r['text']} for r in reviews],
        ),
        'AgNewsSubset': (
            {'description': text, 'title': text},
            [{'description': row[-1], 'title': row[-1][:20]} for row in news],
        ),
        'WmtTranslate': (tfds.features.Translation(['de', 'en']), pairs),
        'OpusTranslate': (
            {'id': text, 'translation': tfds.features.Translation(['de', 'en'])},
            [{'id': '', 'translation': pair} for pair in pairs],
        ),
    }
    records = {}
    for name, (features, rows) in contents.items():
        half = len(rows) // 2
        parts = {'train': rows[:half], 'test': rows[half:]}
        builder_class = builder(tfds, name, features, parts)
        builder_class(data_dir=folder, file_format='array_record').download_and_prepare()
        records |= {(builder_class.name, split): part for split, part in parts.items()}
    return folder, records


def builder(tfds, class_name, features, parts):
    def info(self):
        as_dict = tfds.features.FeaturesDict(features) if isinstance(features, dict) else features
        return tfds.core.DatasetInfo(builder=self, features=as_dict)

    def generators(self, manager):
        return {split: list(enumerate(rows)) for split, rows in parts.items()}

    methods = {
        'VERSION': tfds.core.Version('1.0.0'),
        '_info': info,
        '_split_generators': generators,
        '_generate_examples': None,
        '__module__': __name__,
    }
    return type(class_name, (tfds.core.GeneratorBasedBuilder,), methods)


@pytest.fixture
def data(prepared, config_data):
    return dataclasses.replace(config_data, tfds_dir=str(prepared[0]))


@pytest.mark.parametrize(
    ('name', 'field'),
    [('lm1b', 'text'), ('imdb_reviews', 'text'), ('ag_news_subset', 'description')],
)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_records_are_the_documents(name, field, split, prepared, data):
    made = source.parse(f'tfds:{name}#{field}[{split}]', data)
    expected = [record[field] for record in prepared[1][name, split]]
    assert sorted(made.documents()) == sorted(expected)
    assert list(made.documents()) == list(made.documents())
    assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize('name', ['wmt_translate', 'opus_translate'])
def test_pairs(name, prepared, data):
    made = source.parse(f'tfds:{name}#en,de[train]', data)
    assert made.paired
    texts = list(made.documents())
    records = prepared[1]['wmt_translate', 'train']
    expected = {(record['en'], record['de']) for record in records}
    assert set(zip(texts[::2], texts[1::2], strict=True)) == expected
    turned = list(source.parse(f'tfds:{name}#de,en[train[:5]]', data).documents())
    assert turned[:2] == [texts[1], texts[0]]
    assert len(turned) == 10
    one = source.parse(f'tfds:{name}#de[train]', data)
    assert not one.paired
    assert list(one.documents()) == texts[1::2]


def test_splits_of_tfds_itself(prepared, data):
    whole = list(source.parse('tfds:lm1b[train]', data).documents())
    assert list(source.parse('tfds:lm1b', data).documents()) == whole
    assert list(source.parse('tfds:lm1b:1.0.0[train[:10%]]', data).documents()) == whole[:3]
    assert len(list(source.parse('tfds:lm1b[train+test]', data).documents())) == RECORDS


def test_fingerprints_differ(prepared, data):
    specs = ['lm1b[train]', 'lm1b[test]', 'lm1b[train[:10%]]', 'imdb_reviews[train]']
    specs += [
        'ag_news_subset#title',
        'ag_news_subset#description',
        'ag_news_subset#title,description',
    ]
    specs += ['wmt_translate#en,de', 'wmt_translate#de,en', 'wmt_translate#de']
    prints = [source.parse(f'tfds:{spec}', data).fingerprint() for spec in specs]
    assert len(set(prints)) == len(prints)
    assert prints == [source.parse(f'tfds:{spec}', data).fingerprint() for spec in specs]


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('lm2b', "'lm2b' is not prepared in .*download_and_prepare"),
        ('lm1b[tran]', "has no split 'tran'. Did you mean 'train'"),
        ('lm1b[:10%]', "has no split ':10%'"),
        ('lm1b#txt', "has no feature 'txt'. Did you mean 'text'"),
        ('imdb_reviews#label', "'label' of 'imdb_reviews' is not text"),
        ('opus_translate#translation', "'translation' of 'opus_translate' is not text"),
        ('opus_translate#en,dee', "has no feature 'dee'. Did you mean 'de'"),
        ('wmt_translate#en,de,fr', '3 fields are neither a text nor a pair'),
    ],
)
def test_bad_specs_get_one_line(spec, message, data):
    with pytest.raises(InputError, match=message) as raised:
        source.parse(f'tfds:{spec}', data)
    assert '\n' not in str(raised.value)


def test_empty_sides_are_named(data):
    made = source.parse('tfds:opus_translate#en,id', data)
    with pytest.raises(InputError, match="'id' of record 0 is empty"):
        list(made.documents())
