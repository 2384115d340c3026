"""Terms of losses: what is picked for a prediction, and sums that add up over parts."""

import jax.numpy as jnp
import numpy as np

from lm import terms


def test_picks_what_has_a_weight():
    vectors = jnp.arange(12.0).reshape(2, 6, 1)
    batch = {
        'targets': jnp.array([[5, 6, 7, 8, 9, 10], [1, 2, 3, 4, 5, 6]]),
        'loss_weights': jnp.array([[0, 1.0, 0, 0.5, 0, 0], [0, 0, 0, 0, 0, 2.0]]),
    }
    picked, fields = terms.pick(vectors, batch, ('targets', 'loss_weights'), 2)
    np.testing.assert_array_equal(picked[..., 0], [[1, 3], [11, 6]])
    np.testing.assert_array_equal(fields['targets'], [[6, 8], [6, 1]])
    np.testing.assert_array_equal(fields['loss_weights'], [[1, 0.5], [2, 0]])


def test_picks_all_where_all_may_count():
    vectors, weights = jnp.ones((1, 3, 2)), jnp.ones((1, 3))
    picked, fields = terms.pick(vectors, {'a': weights, 'b': weights}, ('a', 'b'), 3)
    assert picked is vectors
    assert fields['b'] is weights


def test_the_main_terms_names_stand_alone():
    sums = {'tokens': {'nats': 1, 'correct': 2}, 'pair': {'nats': 3}}
    assert terms.flat(sums, 'tokens') == {'nats': 1, 'correct': 2, 'pair/nats': 3}
