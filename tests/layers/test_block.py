"""The attention module and the block around it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, tree
from lm.attention.masks import Causal
from lm.errors import InputError
from lm.layers.attention import Attention, head_sizes, write
from lm.layers.block import PLACEMENTS, Block
from lm.layers.mlp import MLP

BASE = dataclasses.replace(config.parse(base.get_config()).model, embed_dim=16, num_heads=4)


def model_config(**changes):
    return dataclasses.replace(BASE, **changes)


def randomised(params):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32), params)


@pytest.mark.parametrize(
    ('changes', 'sizes'),
    [
        ({}, (4, 4, 4)),
        ({'num_kv_heads': 2}, (4, 2, 4)),
        ({'num_kv_heads': 1, 'head_dim': 6}, (4, 1, 6)),
        ({'num_heads': 3, 'head_dim': 8}, (3, 3, 8)),
    ],
)
def test_head_sizes_and_parameter_shapes(changes, sizes):
    c = model_config(bias=True, qk_norm=True, **changes)
    heads, groups, width = head_sizes(c)
    assert (heads, groups, width) == sizes
    init = Attention(c, Causal()).init
    params = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 2, 16)))['params']
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    assert dict(zip(tree.paths(params), shapes, strict=True)) == {
        'query/kernel': (16, heads, width),
        'query/bias': (heads, width),
        'key/kernel': (16, groups, width),
        'key/bias': (groups, width),
        'value/kernel': (16, groups, width),
        'value/bias': (groups, width),
        'out/kernel': (heads, width, 16),
        'out/bias': (16,),
        'query_norm/scale': (width,),
        'key_norm/scale': (width,),
    }


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_heads': 3}, 'embed_dim = 16 cannot be divided by num_heads = 3. Did you mean 15?'),
        ({'num_kv_heads': 3}, 'cannot be divided by num_kv_heads = 3. Did you mean 2?'),
    ],
)
def test_heads_that_do_not_divide(changes, message):
    with pytest.raises(InputError) as error:
        head_sizes(model_config(**changes))
    assert message in str(error.value)


@pytest.mark.slow
def test_qk_norm_makes_attention_blind_to_the_size_of_its_input():
    x = jax.random.normal(jax.random.key(0), (1, 5, 16))
    module = Attention(model_config(qk_norm=True), Causal())
    params = {'params': randomised(jax.jit(module.init)(jax.random.key(0), x)['params'])}
    apply = jax.jit(module.apply)
    small, large = (apply(params, x * scale)[0] / scale for scale in (1.0, 100.0))
    np.testing.assert_allclose(small, large, atol=1e-3)


@pytest.mark.slow
def test_write_puts_each_row_at_its_own_places():
    cache = {name: jnp.zeros((2, 1, 5, 1)) for name in ('key', 'value')}
    new = jnp.arange(1.0, 5.0).reshape(2, 2, 1, 1)
    got = write(cache, new, -new, jnp.array([[0, 1], [3, 4]]), Causal().reach())
    np.testing.assert_array_equal(got['key'][:, 0, :, 0], [[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]])
    np.testing.assert_array_equal(got['value'], -got['key'])


@pytest.mark.first_quick
@pytest.mark.parametrize('placement', PLACEMENTS)
def test_placement(placement):
    c = model_config(norm_placement=placement, norm='layernorm', position='none')
    x = jax.random.normal(jax.random.key(0), (2, 3, 16))
    params = randomised(jax.jit(Block(c, Causal()).init)(jax.random.key(1), x)['params'])
    got, cache = jax.jit(Block(c, Causal()).apply)({'params': params}, x)
    assert cache is None
    attend = jax.jit(Attention(c, Causal()).apply)

    def norm(name, x):
        x = np.asarray(x)
        return (
            (x - x.mean(-1, keepdims=True))
            / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            * params[name]['scale']
        )

    def attention(x):
        return attend({'params': params['attention']}, x)[0]

    def mlp(x):
        return jax.jit(MLP(c).apply)({'params': params['mlp']}, x)

    if placement == 'pre':
        want = x + attention(norm('attention_norm', x))
        want += mlp(norm('mlp_norm', want))
    elif placement == 'both':
        want = x + norm('attention_output_norm', attention(norm('attention_norm', x)))
        want += norm('mlp_output_norm', mlp(norm('mlp_norm', want)))
    else:
        want = norm('attention_norm', x + attention(x))
        want = norm('mlp_norm', want + mlp(want))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.slow
def test_dropout_only_when_asked_and_by_its_rng():
    c = model_config(dropout=0.5)
    x = jax.random.normal(jax.random.key(0), (2, 3, 16))
    block = Block(c, Causal())
    params = {'params': randomised(jax.jit(block.init)(jax.random.key(1), x)['params'])}

    def run(seed):
        return block.apply(params, x, deterministic=False, rngs={'dropout': jax.random.key(seed)})[
            0
        ]

    plain = block.apply(params, x)[0]
    np.testing.assert_array_equal(plain, Block(model_config(), Causal()).apply(params, x)[0])
    np.testing.assert_array_equal(run(0), run(0))
    assert not np.allclose(run(0), run(1))
    assert not np.allclose(run(0), plain)


@pytest.mark.parametrize(
    ('key', 'value', 'nearest'),
    [
        ('norm', 'rmsnrm', 'rmsnorm'),
        ('norm_placement', 'prev', 'pre'),
        ('activation', 'glu', 'gelu'),
    ],
)
def test_unknown_names(key, value, nearest):
    with pytest.raises(InputError, match=f"config.model.{key} = '{value}' .*'{nearest}'"):
        Block(model_config(**{key: value}), Causal()).init(jax.random.key(0), jnp.ones((1, 2, 16)))
