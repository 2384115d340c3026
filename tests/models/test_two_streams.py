"""The permutation model on all texts of a toy vocabulary: its likelihoods are one distribution."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, tree
from lm.models import example
from lm.models.encoder import Encoder
from lm.models.heads import Head

BASE = dataclasses.replace(
    config.parse(base.get_config()).model, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=24
)
VOCAB, LENGTH = 3, 3
ORDERS = np.array(list(itertools.permutations(range(1, LENGTH + 1))), np.int32)
TEXTS = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)), np.int32)
positions = pytest.mark.parametrize(
    'position', ['rotary', 'learned', 'sinusoidal', 'transformer_xl']
)


@functools.cache
def made(position):
    """Returns a model with two streams, and parameters large enough for each part to matter."""
    changed = dataclasses.replace(BASE, position=position, bias=True)
    model = Encoder(changed, VOCAB, LENGTH + 1, streams=True, heads=(('tokens', Head('output')),))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **example(model)))['params']
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        center = 1.0 if path.endswith('scale') else 0.0
        return jnp.asarray(center + 0.5 * rng.normal(size=leaf.shape), jnp.float32)

    return model, tree.map_with_path(draw, shapes)


@positions
@pytest.mark.parametrize('known', [0, 1], ids=['alone', 'after a token'])
def test_likelihoods_of_all_texts_sum_to_one(position, known):
    """For each order, and so for their mean: p(text) is the product over ranks of p(token | lower ranks).

    With a token of rank 0 before the text, which all see, it is the likelihood given that token.
    """
    model, params = made(position)
    before = np.zeros((len(ORDERS), len(TEXTS), known), np.int32)
    inputs = np.concatenate([before, np.broadcast_to(TEXTS, (len(ORDERS), *TEXTS.shape))], axis=2)
    ranks = np.broadcast_to(ORDERS[:, None], (len(ORDERS), *TEXTS.shape))
    order = np.concatenate([before, ranks], axis=2)
    rows = (len(ORDERS) * len(TEXTS), known + LENGTH)

    @jax.jit
    def predicted(inputs, order):
        return model.apply({'params': params}, inputs, order=order)['tokens']

    logits = np.asarray(predicted(inputs.reshape(rows), order.reshape(rows)), np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))  # [rows, t, VOCAB]
    own = np.take_along_axis(log_p, inputs.reshape(rows)[..., None], axis=-1)[:, known:, 0]
    likelihood = np.exp(own.sum(axis=1)).reshape(len(ORDERS), len(TEXTS))
    np.testing.assert_allclose(likelihood.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(likelihood.mean(axis=0).sum(), 1, atol=1e-6)
    # The orders are of different models, and none of them is a guess.
    assert (np.ptp(likelihood, axis=0) > 1e-3).any()
    assert np.ptp(likelihood) > 0.1


@positions
def test_no_prediction_depends_on_itself_or_what_comes_later(position):
    """Its gradient by the vectors of these tokens is exactly zero, and by the others it is not."""
    model, params = made(position)
    inputs = TEXTS[17:18]

    @jax.jit
    def gradient(order):
        def of_vectors(shift):
            def embed(next_function, args, kwargs, context):
                found = next_function(*args, **kwargs)
                embeds = context.module.path == ('embed',) and context.method_name == '__call__'
                return found + shift if embeds else found

            with nn.intercept_methods(embed):
                logits = model.apply({'params': params}, inputs, order=order)['tokens']
            return jax.nn.log_softmax(logits)[0, jnp.arange(LENGTH), inputs[0]]  # [LENGTH]

        return jax.jacrev(of_vectors)(jnp.zeros((1, LENGTH, BASE.embed_dim)))[:, 0]

    for order in ORDERS:
        moved = np.abs(gradient(order[None])).sum(-1) > 0  # [prediction, token]
        np.testing.assert_array_equal(moved, order[None] < order[:, None])
