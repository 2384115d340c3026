"""Terms of losses: what is picked for a prediction, and sums that add up over parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import config, mesh, models, terms
from lm.terms import loss, tokens


def test_picks_what_has_a_weight():
    vectors = jnp.arange(12.0).reshape(2, 6, 1)
    batch = {
        'targets': jnp.array([[5, 6, 7, 8, 9, 10], [1, 2, 3, 4, 5, 6]]),
        'loss_weights': jnp.array([[0, 1.0, 0, 0.5, 0, 0], [0, 0, 0, 0, 0, 2.0]]),
    }
    picked, fields = loss.pick(vectors, batch, ('targets', 'loss_weights'), 2)
    np.testing.assert_array_equal(picked[..., 0], [[1, 3], [11, 6]])
    np.testing.assert_array_equal(fields['targets'], [[6, 8], [6, 1]])
    np.testing.assert_array_equal(fields['loss_weights'], [[1, 0.5], [2, 0]])


def test_picks_all_where_all_may_count():
    vectors, weights = jnp.ones((1, 3, 2)), jnp.ones((1, 3))
    picked, fields = loss.pick(vectors, {'a': weights, 'b': weights}, ('a', 'b'), 3)
    assert picked is vectors
    assert fields['b'] is weights


def test_the_main_terms_names_stand_alone():
    sums = {'tokens': {'nats': 1, 'correct': 2}, 'pair': {'nats': 3}}
    assert terms.flat(sums, 'tokens') == {'nats': 1, 'correct': 2, 'pair/nats': 3}


@pytest.mark.slow
def test_what_a_generator_fills_in_depends_on_its_row_alone():
    """So an evaluation is the same however rows are batched, and no two rows share their noise."""
    sizes = {'num_layers': 1, 'embed_dim': 16, 'num_heads': 2, 'attention': ('full',)}
    parsed = config.parse(
        lm.get_config(
            'base',
            model=sizes | {'architecture': 'encoder'},
            objective={'name': 'replaced'},
            data={'length': 8},
        )
    )
    model, learnt, _ = terms.build(parsed, 50, mesh.one_device())
    params = jax.jit(lambda: model.init(jax.random.key(0), **models.example(model)))()['params']
    targets = np.random.default_rng(0).integers(4, 49, (4, 8)).astype(np.int32)
    weights = np.tile(np.array([0, 1, 1, 0, 1, 1, 0, 0], np.float32), (4, 1))
    batch = {
        'inputs': np.where(weights > 0, 49, targets),
        'targets': targets,
        'loss_weights': weights,
        'segment_ids': np.ones((4, 8), np.int32),
    }
    evaluate = jax.jit(lambda params, batch: learnt.sums(params, batch, None)['discriminator'])
    whole = evaluate(params, batch)
    rows = [evaluate(params, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(4)]
    for name, total in whole.items():
        np.testing.assert_allclose(total, sum(row[name] for row in rows), rtol=1e-5)
    keys = jax.random.key_data(tokens.row_keys(jnp.asarray(np.concatenate([targets, targets[:1]]))))
    assert len({tuple(key.tolist()) for key in keys}) == 4
