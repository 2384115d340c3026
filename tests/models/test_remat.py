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
