"""Exact duplicates, near duplicates, contamination."""

import random

import numpy as np
import pytest
from corpus_texts import prose
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

from lm.data.corpus import contamination, exact, near, words


def removed(texts, level, options, **changes):
    """Returns the (document, part) that are removed of two shards of half of the texts each."""
    chosen = options(duplicates={'exact': (level,), 'min_characters': 3, **changes}).duplicates
    half = len(texts) // 2
    parts = []
    for some in (texts[:half], texts[half:]):
        found = [h for i, text in enumerate(some) for h in exact.hashes(text, i, level, 3)]
        parts.append(np.sort(np.array(found, exact.HASHED)))
    found = exact.find(parts, level, chosen)
    return {(half * shard + document, part) for shard, document, part in found.tolist()}


def test_the_first_of_the_same_stays(options):
    texts = ['one two', 'three', 'one  two\n', 'four', 'three', 'one two']
    assert removed(texts, 'document', options) == {(2, 0), (4, 0), (5, 0)}


def test_paragraphs_and_lines(options):
    texts = ['one\n\ntwo', 'two\n\nfive\nsix', 'a\none\nsix', 'x']
    assert removed(texts, 'paragraph', options) == {(1, 0)}
    assert removed(texts, 'line', options) == {(1, 0), (2, 1), (2, 2)}  # 'a' and 'x' are too short.


def test_boilerplate_leaves_all_documents(options):
    texts = ['head\nbody one', 'head\nhead\nbody two', 'head\nbody three', 'body one']
    found = removed(texts, 'line', options, exact=(), boilerplate=3)
    assert found == {(0, 0), (1, 0), (1, 1), (2, 0)}
    assert removed(texts, 'line', options, exact=(), boilerplate=4) == set()


def test_ranges_of_hashes_make_the_whole(tmp_path, options):
    rng = np.random.default_rng(0)
    hashed = np.zeros(1000, exact.HASHED)
    hashed['hash'] = rng.integers(0, 1 << 64, 1000, np.uint64)
    hashed['hash'][:3] = [0, (1 << 64) - 1, 1 << 60]
    hashed.sort()
    np.save(tmp_path / 'a.npy', hashed)
    parts = [exact.partition(tmp_path / 'a.npy', number) for number in range(exact.PARTITIONS)]
    assert np.array_equal(np.concatenate(parts), hashed)
    assert all(len(part) for part in parts)


def jaccard(a, b, n):
    one, other = ({tuple(t[i : i + n]) for i in range(len(t) - n + 1)} for t in (a, b))
    return len(one & other) / len(one | other)


@pytest.mark.parametrize('changed', [0, 5, 20, 60])
def test_signatures_estimate_the_similarity(changed, options):
    chosen = options(duplicates={'bands': 100, 'rows': 10, 'shingle': 3}).duplicates
    signatures = near.Signatures(chosen)
    rng = random.Random(changed)
    text = words.normal(prose(1, 40))
    other = list(text)
    for place in rng.sample(range(len(text)), changed):
        other[place] = f'new{"x" * place}'
    a, b = (signatures.of(words.hashes(t, {})) for t in (text, other))
    estimate, true = np.mean(a == b), jaccard(text, other, 3)
    assert abs(estimate - true) < 4 * np.sqrt(true * (1 - true) / 1000) + 1e-9


def test_signatures_are_those_of_datatrove(options):
    chosen = options(duplicates={'bands': 6, 'rows': 5, 'shingle': 5}).duplicates
    hashed = words.hashes(words.normal(prose(1, 100)), {})
    theirs = MinhashDedupSignature('.', near.config(chosen), language=words.Tokenizer())
    expected = theirs.get_signature(words.ngrams(hashed, 5)[:, None])
    assert near.Signatures(chosen).of(hashed).tolist() == sum(expected, [])


def test_a_short_text_has_a_signature(options):
    signatures = near.Signatures(options().duplicates)
    a, b, c = (signatures.of(words.hashes(t.split(), {})) for t in ('one two', 'one two', 'two'))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_what_is_like_a_document_that_stays_goes():
    signatures = [np.zeros((6, 10), np.uint32) for _ in range(3)]
    for shard in range(3):
        signatures[shard] += np.arange(6, dtype=np.uint32)[:, None] + 10 * shard
    # A chain: 1, 5 and (2, 0) are alike in a row, the ends are not; (1, 3) and (1, 4) are the same.
    signatures[0][5, :6] = signatures[0][1, :6]
    signatures[2][0, 6:] = signatures[0][5, 6:]
    signatures[2][0, :2] = signatures[0][1, :2]
    signatures[1][4] = signatures[1][3]
    found = np.array([(0, 1, 0, 5), (0, 5, 2, 0), (1, 3, 1, 4)], near.PAIR)
    similar = near.similarities(found, signatures)
    assert similar.tolist() == pytest.approx([0.6, 0.6, 1.0])

    def dropped(least):
        return near.removed(found, signatures, least).tolist()

    assert dropped(0.5) == [5, (1 << 32) + 4]  # (2, 0) is like 5, which is dropped, and not like 1.
    assert dropped(0.2) == [5, (1 << 32) + 4, 2 << 32]
    assert dropped(0.7) == [(1 << 32) + 4]
    assert near.removed(found[:0], signatures, 0.5).tolist() == []


def test_pairs_of_what_is_gone_are_left_out():
    found = np.array([(0, 1, 0, 5), (0, 5, 2, 0), (1, 3, 1, 4)], near.PAIR)
    gone = np.array([(0, 5, 0)], exact.REMOVED)
    assert near.without(found, gone).tolist() == [(1, 3, 1, 4)]


def test_the_curve_of_bands(options):
    chosen = options(duplicates={'bands': 14, 'rows': 8}).duplicates
    assert near.probability(0.8, chosen) == pytest.approx(0.924, abs=1e-3)  # FineWeb's.


TEXT = prose(9, 3)


def contaminated(document, texts, options, **changes):
    chosen = options(contamination=changes).contamination
    index = contamination.build(texts, chosen)
    return contamination.of(words.hashes(words.normal(document), {}), index)


def test_thirteen_words_in_a_row(options):
    tokens = TEXT.split()
    for size, found in ((13, 'b'), (12, '')):
        inside = f'{prose(10)} {" ".join(tokens[2 : 2 + size])} {prose(11)}'
        assert contaminated(inside, {'a': [prose(12)], 'b': [TEXT]}, options) == found
        assert contaminated(inside.upper(), {'a': [], 'b': [TEXT]}, options) == found


def test_short_texts_must_occur_as_a_whole(options):
    nine = 'Nine words are enough to be looked for here'
    assert contaminated(f'{prose(1)} {nine}. {prose(2)}', {'a': [nine]}, options) == 'a'
    assert contaminated(f'{prose(1)} {nine[:-5]}', {'a': [nine]}, options) == ''
    seven = 'seven words cannot be looked for here'
    assert contaminated(f'{prose(1)} {seven}', {'a': [seven]}, options) == ''
    assert contaminated(f'{prose(1)} {seven}', {'a': [seven]}, options, shortest=7) == 'a'


def test_chinese_text_is_found(options):
    inside = '他说布洛涅森林是法国巴黎城西边的一片森林，真的很美'
    sets = {'zh': ['布洛涅森林，是法国巴黎城西边的一片森林']}
    assert contaminated(inside, sets, options) == 'zh'


def test_an_index_is_read_as_it_was_written(tmp_path, options):
    chosen = options().contamination
    index = contamination.build({'a': [TEXT, 'short'], 'b': [prose(3)]}, chosen)
    contamination.save(index, tmp_path / 'index.npz')
    read = contamination.load(tmp_path / 'index.npz')
    assert (read.names, read.texts) == (index.names, {'a': [1, 1], 'b': [1, 0]})
    for size, hashes in index.hashes.items():
        assert np.array_equal(read.hashes[size], hashes)
        assert np.array_equal(read.sets[size], index.sets[size])
