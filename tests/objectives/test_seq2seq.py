import dataclasses

import numpy as np

from lm.data import features, pipeline
from lm.data.slices import Document
from lm.objectives import OBJECTIVES, window
from lm.objectives.seq2seq import seq2seq
from lm.tokenizer import Bytes
from tests.objectives.specs import example, make_spec, plain


def test_seq2seq_by_hand():
    spec = make_spec()
    assert plain(seq2seq(([10, 11], [20, 21, 22]), None, spec)) == example(seq2seq)
    # Stored documents have BOS and EOS around them.
    stored = ([1, 10, 11, 2], [1, 20, 21, 22, 2])
    assert plain(seq2seq(stored, None, spec)) == example(seq2seq)


def test_too_long_ones_lose_their_ends():
    spec = make_spec(length=3, source_length=4)
    fields = seq2seq((range(10, 20), range(20, 30)), None, spec)
    assert plain(fields) == {
        'inputs': [1, 20, 21],
        'targets': [20, 21, 2],
        'loss_weights': [1.0, 1.0, 1.0],
        'encoder_inputs': [10, 11, 12, 2],
    }


def test_a_source_begins_as_the_tokenizer_has_it():
    spec = make_spec(length=5, source_length=5)
    vocabulary = dataclasses.replace(spec.vocabulary, before=(19, 18))
    spec = dataclasses.replace(spec, vocabulary=vocabulary)
    pair = np.array([1, 10, 11, 12, 2]), np.array([13])
    fields = seq2seq(pair, None, spec)
    assert fields['encoder_inputs'].tolist() == [19, 18, 10, 11, 2]
    assert OBJECTIVES['seq2seq'].prompt(spec) == ((19, 18), (2,), (1,))
    assert OBJECTIVES['seq2seq'].sizes(2, spec) == (3, 5)


def test_packed_rows_have_room_for_what_the_tokenizer_puts_before():
    spec = make_spec(size=260, length=32, source_length=32)
    vocabulary = dataclasses.replace(spec.vocabulary, before=(19, 18))
    spec, entry = dataclasses.replace(spec, vocabulary=vocabulary), OBJECTIVES['seq2seq']
    objective = pipeline.Objective(
        lambda pair, rng, draw: seq2seq(pair, rng, spec, draw),
        window(entry, spec),
        entry.least,
        lambda n: entry.sizes(n, spec),
        32,
        32,
        takes=entry.takes,
        writes=True,
    )
    assert objective.sides == (29, 31)
    texts = [text for size in (1, 5, 7, 40) for text in ('a' * size, 'b' * size)] * 6
    split = features.from_documents(map(Document, texts), Bytes(), paired=True)
    packed = pipeline.pack_split(split, objective, packing=True)
    rows = [packed.fields(packed.row(i), np.random.default_rng(0)) for i in range(len(packed.rows))]
    sources = np.stack([row['encoder_inputs'] for row in rows])
    assert (sources == 19).sum() == len(texts) // 2
    assert (sources == ord('a') + 4).sum() == 6 * (1 + 5 + 7 + 29)
    assert len(rows) < len(texts) // 2
