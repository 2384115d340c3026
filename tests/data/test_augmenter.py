"""Augmentation where batches are made: of training text only, exact again, and with room for what grows."""

import collections
import dataclasses
import functools
import itertools

import numpy as np
import pytest

from lm import codes, vocabulary
from lm.data import augmenter, features, pipeline
from lm.data.augment import AUGMENTATIONS
from lm.data.slices import Document
from lm.errors import InputError
from lm.rows import ALL, HostRows
from lm.tokenizer import BOS, EOS, UNK, Bytes, Specials
from tests.data.test_pipeline import assert_equal, make_objective, scored, take
from tests.test_tokenizer import SPEC, TEXT, make

KINDS = {'subword': 'unigram', 'bpe_dropout': 'bpe'}
TEXTS = [TEXT[:900], *(line for line in TEXT[900:2500].splitlines() if line), 'a', TEXT[3000:4000]]
objective = make_objective(32)


def entry(name, rate=0.5):
    return ' '.join(map(str, (name, rate, 0.2)[: 1 + len(AUGMENTATIONS[name].numbers)]))


@functools.cache
def tokenizer_of(name):
    return make(KINDS.get(name, 'bytes'))


@pytest.fixture
def data(config_data, tmp_path):
    np.save(tmp_path / 'near.npy', np.random.default_rng(0).normal(size=(400, 8)))
    return dataclasses.replace(config_data, length=32, batch_size=4)


@pytest.fixture
def make_dataset(data, tmp_path):
    def made(name, rate=0.5, seed=3, **changes):
        near = str(tmp_path / 'near.npy') * (name == 'replace_nearest')
        own = dataclasses.replace(data, augment=(entry(name, rate),), augment_embedding=near)
        own, text = dataclasses.replace(own, **changes), tokenizer_of(name)
        split = features.from_texts(TEXTS, text)
        augment = augmenter.build(own, text, vocabulary.build(text, SPEC), split)
        return lambda rows=ALL: pipeline.train_dataset(split, own, objective, seed, rows, augment)

    return made


@pytest.mark.first_quick
@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_batches_are_the_same_again_and_from_the_middle(name, make_dataset):
    made = make_dataset(name, random_crop=True)
    one = take(made(), 8)
    assert_equal(one, take(made(), 8))
    assert_equal(one[5:], take(made(), 3, start=5))
    halves = [take(made(HostRows(2, (host,))), 3, start=5) for host in range(2)]
    both = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves, strict=True)]
    assert_equal(one[5:], both)
    plain = take(make_dataset(name, rate=0.0, random_crop=True)(), 8)
    assert any((a['targets'] != b['targets']).any() for a, b in zip(one, plain, strict=True))


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_no_rate_is_no_augmentation(name, data, make_dataset):
    text = tokenizer_of(name)
    split = features.from_texts(TEXTS, text)
    assert_equal(
        take(make_dataset(name, rate=0)(), 6),
        take(pipeline.train_dataset(split, data, objective, 3), 6),
    )


@pytest.mark.parametrize('packing', [True, False])
@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_batches_keep_the_contract(name, packing, make_dataset):
    for batch in take(make_dataset(name, 1.0, packing=packing)(), 8):
        real = batch['segment_ids'] > 0
        np.testing.assert_array_equal(real, batch['loss_weights'] > 0)
        same = (batch['segment_ids'][:, 1:] == batch['segment_ids'][:, :-1]) & real[:, 1:]
        np.testing.assert_array_equal(batch['inputs'][:, 1:][same], batch['targets'][:, :-1][same])
        # A BOS is at the start of a segment, an EOS at its end.
        assert (batch['positions'][batch['inputs'] == BOS] == 0).all()
        assert not (batch['inputs'] == EOS).any()
        assert UNK not in batch['targets'] or name == 'drop'


@pytest.mark.parametrize('packing', [True, False])
def test_what_is_put_in_pushes_nothing_out(packing, data):
    """An epoch has every target, and the copies."""
    split = features.from_texts(TEXTS, Bytes())
    data = dataclasses.replace(data, packing=packing, augment=('insert 0.3',), batch_size=1)
    rows = len(pipeline.pack_split(split, objective, packing, growth=1.3).rows)
    data = dataclasses.replace(data, batch_size=rows)
    ids = vocabulary.build(Bytes(), SPEC)
    augment = augmenter.build(data, Bytes(), ids, split)
    for epoch in take(pipeline.train_dataset(split, data, objective, 0, ALL, augment), 2):
        found, stored = scored([epoch]), collections.Counter(split.tokens.tolist())
        del stored[BOS]
        assert not stored - found
        # Each window's tokens, of which one is no target, and three in ten more.
        assert 0.28 < found.total() / stored.total() - 1 < 0.33
        assert found[EOS] == len(TEXTS)
    told = pipeline.describe(split, data, objective, 0, 0)['rows']
    sizes = [size for row in told for _, _, size in row]
    assert max(sizes) == int(32 / 1.3)
    assert sum(sizes) == stored.total()
    # Windows with room left in them are full ones, which may begin anywhere.
    data = dataclasses.replace(data, random_crop=True)
    told = pipeline.describe(split, data, objective, 0, 0)['rows']
    assert len({start % max(sizes) for row in told for _, start, _ in row}) > 5


def test_evaluation_has_none(data):
    split = features.from_texts(TEXTS, Bytes())
    own = dataclasses.replace(data, augment=('insert 0.3', 'replace 1'))
    datasets = [pipeline.eval_dataset(split, d, objective, 0, 4) for d in (data, own)]
    one, other = ([dataset[i] for i in range(len(dataset))] for dataset in datasets)
    assert_equal(one, other)
    with pytest.raises(TypeError, match='augmenter'):
        pipeline.train_dataset(split, own, objective, 0)


# --- other objectives ---------------------------------------------------------------------------------


def raw(parts, rng, draw):
    """Shows what an objective is given: the first text as the source, and the last as the target."""
    source, target = parts[0], parts[-1]
    weights = np.ones(len(target), np.float32)
    fields = {'inputs': target, 'targets': target, 'loss_weights': weights}
    return fields | {'encoder_inputs': np.asarray(source, np.int32)}


def paired(texts):
    return features.from_documents(map(Document, texts), Bytes(), paired=True)


def augmenter_of(data, split, mask=False):
    ids = vocabulary.build(Bytes(), dataclasses.replace(SPEC, mask=mask))
    return augmenter.build(data, Bytes(), ids, split)


def segments(batch, name='', key='inputs'):
    """The tokens of each segment, of all rows."""
    for tokens, ids in zip(batch[name + key], batch[f'{name}segment_ids'], strict=True):
        yield from (tokens[ids == i].tolist() for i in range(1, ids.max() + 1))


def test_of_pairs_to_be_written_only_sources_change(data):
    sources = [''.join(pair) for pair in itertools.product('abcd', repeat=2)]
    split = paired([text for source in sources for text in (f'go: {source * 3}', source.upper())])
    data = dataclasses.replace(data, augment=('insert 0.5', 'swap 1'), prefix='go: ', batch_size=2)
    writes = pipeline.Objective(
        raw, 31, 1, lambda n: (n, n), 32, 32, takes=frozenset({'pair'}), writes=True
    )
    dataset = pipeline.train_dataset(split, data, writes, 0, ALL, augmenter_of(data, split))
    changed = 0
    for batch in take(dataset, 20):
        pairs = zip(segments(batch, 'encoder_'), segments(batch, '', 'targets'), strict=True)
        for source, target in pairs:
            source, target = Bytes().decode(source), Bytes().decode(target)
            assert target.lower() in sources
            assert source.startswith('go: ')
            whole = collections.Counter(target.lower() * 3)
            # The room that packing keeps for what grows is enough: three letters of six more.
            assert not whole - collections.Counter(source[4:])
            assert len(source[4:]) == 9
            changed += not source[4:].startswith(target.lower() * 3)
        assert batch['encoder_segment_ids'].max() > 1
    assert changed > 20


@pytest.mark.parametrize('labelled', [True, False])
def test_of_texts_with_labels_each_text_changes(labelled, data):
    texts = ['one text', 'another']
    split = paired(texts * 8)
    if labelled:
        split = dataclasses.replace(split, label_names=('x',), labels=np.zeros(8, np.int32))
    seen = []

    def fields(given, rng, draw):
        parts, label = given if labelled else (given, None)
        assert label == (7 if labelled else None)
        seen.append(tuple(Bytes().decode(part) for part in parts))
        assert all((part[0], part[-1]) == (BOS, EOS) for part in parts)
        return raw(parts, rng, draw)

    classified = pipeline.Objective(
        fields, 14, 1, lambda n: (2 * n + 3, 0), 32, 32, takes=frozenset({'pair'})
    )
    if labelled:
        classified = dataclasses.replace(classified, label=lambda _: 7)
    data = dataclasses.replace(data, augment=('rotate 1',), packing=False, batch_size=2)
    dataset = pipeline.train_dataset(split, data, classified, 0, ALL, augmenter_of(data, split))
    take(dataset, 10)
    for text, found in zip(texts, zip(*seen, strict=True), strict=True):
        assert len(set(found)) > 3
        assert {''.join(sorted(other)) for other in found} == {''.join(sorted(text))}


def test_tokens_of_other_documents_are_augmented_too(data):
    """Else those that do not follow would be told from those that do by their lack of noise."""
    split = features.from_texts(['a' * 40, 'b' * 40], Bytes())
    data = dataclasses.replace(data, augment=('drop 0.5',), packing=False, batch_size=1)

    def fields(tokens, rng, draw):
        other = draw(rng, 20)
        assert len(other) == 20
        assert 5 < (other == UNK).sum() < 15
        return raw((tokens, tokens), rng, draw) | {'encoder_inputs': other}

    drawing = pipeline.Objective(fields, 32, 2, lambda n: (n, n), 32, 32)
    take(pipeline.train_dataset(split, data, drawing, 0, ALL, augmenter_of(data, split)), 10)


def test_codes_come_after_and_room_is_left_for_them(data):
    ids = {'news': 260, 'title=': 261}
    documents = [Document('x' * 100, codes=('news', 'title=Abc'))] * 4
    split = features.from_documents(documents, Bytes(), ids)
    spec = dataclasses.replace(SPEC, codes=tuple(ids))
    data = dataclasses.replace(data, augment=('insert 0.3', 'drop 0.5'), batch_size=2)
    own = augmenter.build(data, Bytes(), vocabulary.build(Bytes(), spec), split)
    before = codes.tokens(['news', 'title=Abc'], ids, Bytes().encode, '')
    for batch in take(pipeline.train_dataset(split, data, objective, 0, ALL, own), 9):
        for tokens in segments(batch):
            text = tokens[tokens[0] == BOS :]
            assert text[: len(before)] == before
            assert set(text[len(before) :]) <= {UNK, ord('x') + 4}


def test_a_window_that_would_be_too_short_stays(data):
    split = features.from_texts(['ab'] * 40, Bytes())
    data = dataclasses.replace(data, augment=('delete 1',), packing=False)
    needy = dataclasses.replace(objective, least=4)
    for least, sizes in ((objective, {2}), (needy, {3})):
        dataset = pipeline.train_dataset(split, data, least, 0, ALL, augmenter_of(data, split))
        batch = take(dataset, 1)[0]
        assert {len(tokens) for tokens in segments(batch)} == sizes


# --- what it is built of ------------------------------------------------------------------------------


def test_frequencies_are_those_of_the_text(monkeypatch):
    ids = vocabulary.build(Bytes(), SPEC)
    split = features.from_texts(['abb' * 50], Bytes())
    found = np.diff(augmenter._frequencies(split.tokens, ids), prepend=0)
    a, b = (int(np.flatnonzero(ids.text == ord(letter) + 4)[0]) for letter in 'ab')
    assert found[a] == pytest.approx(1 / 3)
    assert found[b] == pytest.approx(2 / 3)
    assert found.sum() == pytest.approx(found[a] + found[b])
    # Of much text a part, evenly spread.
    monkeypatch.setattr(augmenter, '_COUNTED', 50)
    monkeypatch.setattr(augmenter, '_BLOCK', 10)
    found = np.diff(augmenter._frequencies(split.tokens, ids), prepend=0)
    assert found[a] == pytest.approx(1 / 3, abs=0.1)
    none = np.diff(augmenter._frequencies(split.tokens[:1], ids), prepend=0)
    np.testing.assert_allclose(none, 1 / 256)


def test_the_nearest_are_those_of_the_largest_cosine(monkeypatch):
    monkeypatch.setattr(augmenter, '_ROWS', 7)
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    ids = np.arange(3, 38)
    found = augmenter.nearest_of(vectors, ids)
    assert (found.shape, found.dtype) == ((40, 10), np.int32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for token in ids:
        others = [other for other in ids if other != token]
        expected = sorted(others, key=lambda other: -(unit[token] @ unit[other]))
        assert found[token].tolist() == expected[:10]
    assert found[[0, 39]].tolist() == [[0] * 10, [39] * 10]
    assert augmenter.nearest_of(vectors, ids[:1])[3].tolist() == [3]


@pytest.mark.parametrize(
    ('kind', 'changes', 'message'),
    [
        ('bytes', {'augment': ('subword 1 1',)}, "'subword' needs a .* 'unigram', .* kind 'bytes'"),
        ('unigram', {'augment': ('bpe_dropout 0',)}, "'bpe_dropout' needs .* kind 'unigram'"),
        ('huggingface', {'augment': ('bpe_dropout 1',)}, "'bpe_dropout' needs .*'huggingface'"),
        ('bytes', {'augment': ('swop 1',)}, "Did you mean 'swap'"),
        ('bytes', {'augment': ('replace_nearest 1',)}, 'needs config.data.augment_embedding'),
        ('bytes', {'augment_embedding': 'a.npy'}, "a.npy' is for 'replace_nearest'"),
        ('no unk', {'augment': ('drop 0.1',)}, "'drop' writes UNK or a mask"),
    ],
)
def test_what_does_not_go_together(kind, changes, message, config_data):
    text = make('bytes' if kind == 'no unk' else kind)
    if kind == 'no unk':
        text.specials = Specials(unk=-1)
    data = dataclasses.replace(config_data, **changes)
    with pytest.raises(InputError, match=message):
        augmenter.check(data, text, vocabulary.build(text, SPEC))


@pytest.mark.parametrize('unk', [-1, EOS])  # GPT-2's UNK is its EOS.
def test_without_an_unk_the_mask_is_written(unk, data):
    text = Bytes()
    text.specials = Specials(unk=unk)
    ids = vocabulary.build(text, dataclasses.replace(SPEC, mask=True))
    split = features.from_texts(['abc'], text)
    own = augmenter.build(dataclasses.replace(data, augment=('drop 1',)), text, ids, split)
    assert own(np.array([BOS, 5, 6]), np.random.default_rng(0), 3).tolist() == [BOS, 260, 260]


@pytest.mark.parametrize(
    ('array', 'message'),
    [
        (None, 'is not an .npy file of floats'),
        (np.zeros((400, 8), int), 'is not an .npy file of floats'),
        (np.zeros(400), 'is not an .npy file of floats'),
        (np.zeros((200, 8)), 'has 200 rows for 260 ids'),
    ],
)
def test_embeddings_that_cannot_be(array, message, data, tmp_path):
    path = tmp_path / 'bad.npy'
    if array is not None:
        np.save(path, array)
    data = dataclasses.replace(data, augment=('replace_nearest 1',), augment_embedding=str(path))
    with pytest.raises(InputError, match=message):
        augmenter_of(data, features.from_texts(['abc'], Bytes()))
