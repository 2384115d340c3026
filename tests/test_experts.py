"""The term of experts: in the loss of every objective, and out of its main term."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lm
from lm import config as configs
from lm import mesh, terms
from lm.step import Steps

ROWS, LENGTH, VOCAB = 4, 8, 32
EXPERTS = {'num_layers': 4, 'embed_dim': 8, 'num_heads': 2, 'experts': 4, 'expert_every': 2}
ARCHITECTURES = {
    **dict.fromkeys(('masked', 'permutation', 'replaced'), 'encoder'),
    **dict.fromkeys(('classification', 'similarity', 'contrastive'), 'encoder'),
    **dict.fromkeys(('span_corruption', 'ul2', 'denoising', 'seq2seq'), 'encoder_decoder'),
}


def make_config(name, **sections):
    """The first half of the second row is a text, the other rows are full."""
    architecture = ARCHITECTURES.get(name, 'decoder')
    attention = ('full',) if architecture == 'encoder' else ('causal',)
    model = {'architecture': architecture, 'attention': attention} | sections.pop('model', {})
    data = {'length': LENGTH, 'batch_size': ROWS}
    made = lm.get_config(
        'base', objective={'name': name}, data=data, model=EXPERTS | model, **sections
    )
    return configs.parse(made)


def make_batch(name):
    rng = np.random.default_rng(0)
    segments = np.ones((ROWS, LENGTH), np.int32)
    segments[1, LENGTH // 2 :] = 0
    tokens = rng.integers(VOCAB, size=(ROWS, LENGTH)).astype(np.int32)
    batch = {'inputs': tokens, 'targets': np.roll(tokens, -1, 1), 'segment_ids': segments}
    batch['positions'] = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    batch['loss_weights'] = (segments > 0).astype(np.float32)
    first = np.zeros((ROWS, LENGTH), np.float32)
    first[:, 0] = 1
    batch |= {'labels': segments, 'label_values': first, 'label_weights': first}
    if name == 'permutation':
        batch['order'] = batch['positions']
    if name == 'contrastive':
        batch['token_types'] = (batch['positions'] > 2).astype(np.int32)
    if ARCHITECTURES.get(name) == 'encoder_decoder':
        for key in ('inputs', 'positions', 'segment_ids'):
            batch[f'encoder_{key}'] = batch[key]
    return batch


@pytest.mark.first_quick
@pytest.mark.parametrize('name', terms.TERMS)
def test_every_objective_has_the_term(name):
    """Its weight is what goes through a router: two of four layers, and 28 tokens in each."""
    c, batch = make_config(name), make_batch(name)
    one = mesh.one_device()
    with jax.set_mesh(one):
        model, loss, _ = terms.build(c, VOCAB, one)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **lm.models.example(model)))
        found = jax.eval_shape(loss.sums, shapes['params'], batch, None)
        weights = loss.weights(batch)
    assert set(found) == set(weights) == set(loss.coefficients)
    twice = name == 'permutation' or ARCHITECTURES.get(name) == 'encoder_decoder'
    assert weights['experts'] == 28 * 2 * (2 if twice else 1)
    assert all(value.shape == () for value in found['experts'].values())


@pytest.mark.slow
def test_the_loss_is_the_main_term_and_that_of_each_layer():
    c, batch = make_config('causal'), make_batch('causal')
    one = mesh.one_device()
    with jax.set_mesh(one):
        steps = Steps(c, VOCAB, one, optax.sgd(0.1))
        state = steps.init()
        sums = steps.evaluate(state.params, batch)
        _, metrics = steps.train(state, batch)
    expected = metrics['nats'] + 2 * metrics['experts/loss']
    np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-6)
    routed = 0.01 * metrics['experts/balance'] + 0.001 * metrics['experts/z']
    np.testing.assert_allclose(metrics['experts/loss'], routed, rtol=1e-5)
    assert 1 <= metrics['experts/load'] <= metrics['experts/worst_load'] <= 4
    np.testing.assert_allclose(sums['nats'] / sums['weight'], metrics['nats'], rtol=1e-5)
    np.testing.assert_allclose(sums['loss'], sums['nats'], rtol=1e-6)


@pytest.mark.slow
def test_routers_learn_from_the_term():
    """With the main term's gradient left out."""
    c, batch = make_config('causal'), make_batch('causal')
    one = mesh.one_device()
    with jax.set_mesh(one):
        model, loss, _ = terms.build(c, VOCAB, one)
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
        term = jax.grad(lambda p: loss.sums(p, batch, None)['experts']['loss'])
        gradient = jax.jit(term)(params)
    router = gradient['layers']['block_1']['mlp']['router']['kernel']
    assert 'router' not in gradient['layers']['block_0']['mlp']
    assert np.abs(router).max() > 0


def test_the_worst_layer_is_that_of_the_highest_load_whatever_its_tokens():
    def stack(tokens, *loads):
        each = {'tokens': jnp.full(len(loads), float(tokens)), 'load': tokens * jnp.array(loads)}
        return {'mlp': each | {name: jnp.zeros(len(loads)) for name in ('loss', 'balance', 'z')}}

    found = terms.loss.experts_sums({'encoder': stack(300, 1.5, 1.0), 'decoder': stack(100, 2.0)})
    weight = 2 * 300 + 100
    assert found['worst_load'] / weight == 2.0
    assert found['load'] / weight == (300 * 2.5 + 100 * 2.0) / weight
    assert 'tokens' not in found


def test_each_layers_loss_counts_in_both_stacks():
    c = make_config('seq2seq')
    one = mesh.one_device()
    with jax.set_mesh(one):
        _, loss, _ = terms.build(c, VOCAB, one)
    assert loss.coefficients['experts'] == 2 * (c.model.num_layers // c.model.expert_every)
