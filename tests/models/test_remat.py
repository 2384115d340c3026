"""What the backward pass recomputes."""

import jax
import jax.numpy as jnp

import lm
from lm import config as configs
from lm.models.decoder import Decoder


def count_dots(remat):
    config = configs.parse(
        lm.get_config('base', model={'remat': remat, 'num_layers': 1, 'embed_dim': 32})
    )
    model = Decoder(config.model, 16, 8)
    tokens = jnp.zeros((2, 8), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))
    gradient = jax.grad(lambda p: model.apply(p, tokens).sum())
    return str(jax.make_jaxpr(gradient)(params)).count('dot_general')


def test_dots_recomputes_some_products_and_full_recomputes_all():
    none, dots, full = map(count_dots, ('none', 'dots', 'full'))
    assert none < dots < full


def test_dots_keeps_products_in_the_dtype_of_the_model():
    changes = {'remat': 'dots', 'embed_dim': 32, 'mlp_dim': 96, 'dtype': 'bfloat16'}
    config = configs.parse(lm.get_config('base', model=changes))
    model = Decoder(config.model, 16, 8)
    tokens = jnp.zeros((2, 8), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))
    kept = jax.eval_shape(lambda p: jax.vjp(lambda p: model.apply(p, tokens), p)[1], params)
    products = [x for x in jax.tree.leaves(kept) if x.shape[-3:] == (2, 8, 96)]
    assert {x.dtype for x in products} == {jnp.dtype('bfloat16')}
