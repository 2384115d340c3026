"""Codes before prompts, and classifier-free guidance by them, against full forward passes."""

import jax
import numpy as np
import pytest

from lm import decode
from lm.decode import Sampling
from tests.test_decode import LENGTHS, PROMPTS, VOCAB, make, run

CODES = (10, 12)
BEGIN = 1  # lm.tokenizer.BOS
STARTED = np.concatenate([np.full((3, 1), BEGIN), PROMPTS], axis=1).astype(np.int32)


def guided(model, params, prompt, count, guidance):
    """Greedy by full forward passes over a text with codes and one without."""
    apply = jax.jit(model.apply)
    rows, made = [[BEGIN, *CODES, *prompt], [BEGIN, *prompt]], []
    half = model.max_length // 2
    while len(made) < count:
        for i, codes in enumerate((CODES, ())):
            if len(rows[i]) >= model.max_length:
                rows[i] = [*codes, *rows[i][-(half - len(codes)) :]]
        logits = []
        for row in rows:
            padded = np.zeros((1, model.max_length), np.int32)
            padded[0, : len(row)] = row
            logits.append(np.asarray(apply({'params': params}, padded)[0, len(row) - 1, :VOCAB]))
        given, free = logits
        made.append(int(np.argmax(free + guidance * (given - free))))
        rows = [[*row, made[-1]] for row in rows]
    return made


@pytest.mark.first_quick
@pytest.mark.parametrize('guidance', [0.5, 1.7, 4.0])
@pytest.mark.parametrize('length', [64, 12])
def test_guidance_is_its_formula(guidance, length):
    model, params = make(length)
    got, counts = run(
        model, params, STARTED, LENGTHS + 1, max_tokens=14, codes=CODES, guidance=guidance
    )
    np.testing.assert_array_equal(counts, [14, 14, 14])
    for tokens, prompt, size in zip(got, PROMPTS, LENGTHS, strict=True):
        assert tokens.tolist() == guided(model, params, prompt[:size], 14, guidance)


@pytest.mark.first_quick
@pytest.mark.parametrize('sampling', [Sampling(0.0), Sampling(1.0, top_k=9)])
@pytest.mark.parametrize('length', [64, 12])
def test_guidance_1_is_with_the_codes_and_0_without(sampling, length):
    model, params = make(length)
    options = {'sampling': sampling, 'max_tokens': 20}
    free, _ = run(model, params, STARTED, LENGTHS + 1, **options)
    zero, _ = run(model, params, STARTED, LENGTHS + 1, codes=CODES, guidance=0.0, **options)
    np.testing.assert_array_equal(zero, free)
    one, _ = run(model, params, STARTED, LENGTHS + 1, codes=CODES, guidance=1.0, **options)
    assert (one != free).any()
    if length == 64:  # No window moves, and the codes are but a part of the prompt.
        prompts = np.insert(STARTED, [1, 1], CODES, axis=1)
        np.testing.assert_array_equal(run(model, params, prompts, LENGTHS + 3, **options)[0], one)
    near, _ = run(model, params, STARTED, LENGTHS + 1, codes=CODES, guidance=1 + 1e-6, **options)
    np.testing.assert_array_equal(near, one)


def test_guided_rows_end_each_by_itself_and_are_streamed_once():
    model, params = make()
    options = {'codes': CODES, 'guidance': 2.0, 'max_tokens': 10}
    free, _ = run(model, params, STARTED, LENGTHS + 1, **options)
    steps = []
    got, counts = run(
        model,
        params,
        STARTED,
        LENGTHS + 1,
        stop=(int(free[1, 4]),),
        stream=lambda tokens: steps.append(np.array(tokens)),
        **options,
    )
    ends = [next((i for i, t in enumerate(row) if t == free[1, 4]), 10) for row in free]
    np.testing.assert_array_equal(counts, ends)
    shown = np.stack(steps, axis=1)
    assert shown.shape[0] == 3
    for row, tokens, count in zip(shown, got, counts, strict=True):
        np.testing.assert_array_equal(row[:count], tokens[:count])
        assert (row[count:] == -1).all()


def test_ids_that_fill_the_table_up_stay_impossible():
    logits = np.array([[1.0, 2.0, -np.inf], [0.0, 4.0, -np.inf]], np.float32)
    np.testing.assert_array_equal(decode.guide(logits, 2.0), [[2.0, 0.0, -np.inf]])
