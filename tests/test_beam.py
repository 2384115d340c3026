"""Beam search against greedy decoding, against all texts, and against the model's own scores."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import beam, decode
from lm.beam import Beam
from lm.errors import InputError
from tests.models.test_encoder_decoder import SOURCES, TARGETS, VOCAB, apply, made, tokens

STOP = 2
COUNTS = np.array([11, 4, 7], np.int32)


def search(model, params, sources, counts, **options):
    prompts = np.ones((len(sources), 1), np.int32)
    lengths = np.ones(len(sources), np.int32)
    steps = options.pop('max_tokens', 6)
    return beam.search(
        model,
        params,
        prompts,
        lengths,
        max_tokens=steps,
        beam=Beam(**options),
        stop=(STOP,),
        sources=(sources, counts),
    )


def log_probability(model, params, source, count, text):
    """Returns the sum over a text's tokens, by the forward pass."""
    inputs = np.array([[1, *text[:-1]]], np.int32)
    segments = (np.arange(len(source)) < count).astype(np.int32)[None]
    logits = apply(model, params, inputs, encoder_inputs=source[None], encoder_segment_ids=segments)
    logs = jax.nn.log_softmax(logits[0])
    return float(sum(logs[i, token] for i, token in enumerate(text)))


@pytest.mark.first_quick
@pytest.mark.parametrize('name', ['rotary', 't5'])
def test_one_beam_is_greedy(name):
    model, params = made(name)
    sources = tokens(3, SOURCES, 1)
    found, counts, _ = search(model, params, sources, COUNTS, size=1)
    want, lengths = decode.generate(
        model,
        params,
        np.ones((3, 1), np.int32),
        np.ones(3, np.int32),
        jax.random.key(0),
        max_tokens=6,
        sampling=decode.Sampling(temperature=0),
        stop=(STOP,),
        sources=(sources, COUNTS),
    )
    np.testing.assert_array_equal(found[:, 0], want)
    np.testing.assert_array_equal(counts[:, 0], lengths)


@pytest.mark.first_quick
@pytest.mark.parametrize('penalty', [0.6, 0.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all_texts(penalty):
    model, params = made('rotary')
    sources = tokens(1, SOURCES, 3)
    steps = 3
    found, counts, scores = search(
        model,
        params,
        sources,
        COUNTS[:1],
        size=VOCAB**2,
        length_penalty=penalty,
        best=4,
        max_tokens=steps,
    )
    others = [token for token in range(VOCAB) if token != STOP]
    texts = [(*t, STOP) for n in range(steps) for t in itertools.product(others, repeat=n)]
    # All of a length in one batch.
    logs = {}
    for n, group in itertools.groupby(texts, len):
        group = list(group)
        inputs = np.array([[1, *text[:-1]] for text in group], np.int32)
        logits = apply(
            model,
            params,
            inputs,
            encoder_inputs=np.repeat(sources, len(group), axis=0),
        )
        steps_logs = jnp.take_along_axis(
            jax.nn.log_softmax(logits), np.array(group)[..., None], axis=-1
        )[..., 0].sum(1)
        logs |= dict(zip(group, np.asarray(steps_logs) / ((5 + n) / 6) ** penalty, strict=True))
    best = sorted(logs, key=logs.get, reverse=True)[:4]
    for i, text in enumerate(best):
        assert tuple(found[0, i, : counts[0, i]]) == text[:-1]
        assert scores[0, i] == pytest.approx(logs[text], abs=1e-4)


@pytest.mark.slow
def test_scores_are_the_models_own_and_rows_do_not_mind_each_other():
    model, params = made('2017')
    sources = tokens(3, SOURCES, 1)
    found, counts, scores = search(model, params, sources, COUNTS, size=4, best=4)
    for row in range(3):
        alone = search(model, params, sources[row : row + 1], COUNTS[row : row + 1], size=4, best=4)
        np.testing.assert_array_equal(alone[0][0], found[row])
        np.testing.assert_allclose(alone[2][0], scores[row], atol=1e-5)
        for i in range(4):
            text = tuple(found[row, i, : counts[row, i]])
            text += (STOP,) if len(text) < 6 else ()
            if np.isfinite(scores[row, i]):
                want = log_probability(model, params, sources[row], COUNTS[row], text)
                want /= ((5 + len(text)) / 6) ** 0.6
                assert scores[row, i] == pytest.approx(want, abs=1e-4)


def test_texts_fill_learned_positions_and_no_more():
    model, params = made('bart')
    sources = tokens(1, SOURCES, 1)
    found, _, _ = search(model, params, sources, COUNTS[:1], size=2, max_tokens=TARGETS)
    assert found.shape == (1, 1, TARGETS)
    with pytest.raises(InputError, match='outgrow the 8'):
        search(model, params, sources, COUNTS[:1], size=2, max_tokens=TARGETS + 1)


def test_refuses_what_makes_no_sense():
    with pytest.raises(InputError, match='size is at least 1'):
        Beam(size=0)
    with pytest.raises(InputError, match='best from 1 to size'):
        Beam(size=2, best=3)
    with pytest.raises(InputError, match='length_penalty'):
        Beam(length_penalty=-1.0)
