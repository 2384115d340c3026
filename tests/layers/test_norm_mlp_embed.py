"""Norms, MLPs and embeddings against numpy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, matmul
from lm.errors import InputError
from lm.layers.dense import Dense
from lm.layers.embed import Embed, sinusoids
from lm.layers.mlp import ACTIVATIONS, MLP, mlp_dim
from lm.layers.norm import NORMS

BASE = config.parse(base.get_config()).model


def model_config(**changes):
    return dataclasses.replace(BASE, **changes)


def test_norms_literal():
    x = jnp.array([[3.0, 4.0]])
    rms = NORMS['rmsnorm']().apply({'params': {'scale': jnp.array([1.0, 10.0])}}, x)
    np.testing.assert_allclose(rms, np.array([[3.0, 40.0]]) / np.sqrt(12.5), rtol=1e-5)
    params = {'scale': jnp.array([1.0, 10.0]), 'bias': jnp.array([0.5, 0.0])}
    layer = NORMS['layernorm'](bias=True).apply({'params': params}, x)
    np.testing.assert_allclose(layer, [[-0.5, 10.0]], atol=1e-3)


@pytest.mark.parametrize('norm', NORMS.values(), ids=NORMS)
def test_norm_statistics_are_float32(norm):
    """Else bfloat16 would round the squares, and differ in many places."""
    x = jax.random.normal(jax.random.key(0), (32, 64)).astype(jnp.bfloat16)
    params = norm().init(jax.random.key(0), x)
    half = norm(dtype=jnp.bfloat16).apply(params, x)
    single = norm().apply(params, x.astype(jnp.float32))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, single.astype(jnp.bfloat16))


def test_only_layernorm_with_bias_has_one():
    x = jnp.ones((2, 3))
    for name, norm in NORMS.items():
        names = set(norm(bias=True).init(jax.random.key(0), x)['params'])
        assert names == ({'scale', 'bias'} if name == 'layernorm' else {'scale'})
        assert set(norm(bias=False).init(jax.random.key(0), x)['params']) == {'scale'}


def test_dense_is_einsum():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    for inputs, features, spec in [(1, (6, 7), 'bthk,kxy->bthxy'), (2, (6,), 'bthk,hkd->btd')]:
        dense = Dense(features, inputs=inputs, bias=True)
        params = jax.jit(dense.init)(jax.random.key(1), x)['params']
        params['bias'] = np.full(features, 3.0, np.float32)
        want = np.einsum(spec, x, params['kernel']) + 3
        np.testing.assert_allclose(dense.apply({'params': params}, x), want, atol=1e-5)


@pytest.mark.parametrize('scale', [1.0, 0.25])
def test_dense_initial_spread(scale):
    kernel = Dense((256,), scale=scale).init(jax.random.key(0), jnp.ones((1, 256)))['params'][
        'kernel'
    ]
    np.testing.assert_allclose(np.std(kernel), 0.02 * scale, rtol=0.02)


@pytest.mark.parametrize(
    ('activation', 'width', 'explicit', 'expected'),
    [
        ('gelu', 96, 0, 384),
        ('swiglu', 96, 0, 256),  # 8/3 * 96 = 256
        ('geglu', 100, 0, 320),  # 266.7, rounded up to a multiple of 64
        ('swiglu', 96, 40, 40),
    ],
)
def test_mlp_dim(activation, width, explicit, expected):
    assert (
        mlp_dim(model_config(activation=activation, embed_dim=width, mlp_dim=explicit)) == expected
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu_erf(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_mlp_formula(name):
    c = model_config(activation=name, embed_dim=4, mlp_dim=6, bias=True)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    shapes = jax.eval_shape(MLP(c).init, jax.random.key(0), x)['params']
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), shapes)

    def dense(part, x):
        return x @ params[part]['kernel'] + params[part]['bias']

    h = {
        'gelu': lambda: gelu_tanh(dense('up', x)),
        'gelu_exact': lambda: gelu_erf(dense('up', x)),
        'relu': lambda: np.maximum(dense('up', x), 0),
        'silu': lambda: dense('up', x) * sigmoid(dense('up', x)),
        'swiglu': lambda: dense('up', x) * dense('gate', x) * sigmoid(dense('gate', x)),
        'geglu': lambda: dense('up', x) * gelu_tanh(dense('gate', x)),
    }[name]()
    np.testing.assert_allclose(
        MLP(c).apply({'params': params}, x), dense('down', h), rtol=1e-4, atol=1e-4
    )


def test_unknown_activation():
    with pytest.raises(InputError, match=r"config.model.activation = 'swigl'.*'swiglu'"):
        mlp_dim(model_config(activation='swigl'))


def test_embed_looks_up_and_attends():
    table = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    embed, params = Embed(3, 2), {'params': {'embedding': table}}
    rows = embed.apply(params, jnp.array([[2, 0, 9]]))  # 9 is past the end
    np.testing.assert_array_equal(rows, [[[3.0, 3.0], [1.0, 0.0], [3.0, 3.0]]])
    logits = embed.apply(params, jnp.array([[1.0, 1.0]]), method='attend')
    np.testing.assert_array_equal(logits, [[1.0, 2.0, 6.0]])


def test_attend_is_float32_in_bfloat16():
    embed = Embed(3, 64, jnp.bfloat16)
    params = embed.init(jax.random.key(0), jnp.array([0]))

    def loss(params):
        x = embed.apply(params, jnp.array([0, 1]))
        assert x.dtype == jnp.bfloat16
        logits = embed.apply(params, x, method='attend')
        assert logits.dtype == jnp.float32
        return jnp.sum(logits**2)

    grad = jax.jit(jax.grad(loss))(params)['params']['embedding']
    assert grad.dtype == jnp.float32
    assert np.isfinite(grad).all()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_few_vectors_attend_as_rows_of_them_do(dtype):
    embed = Embed(40, 8, dtype)
    params = embed.init(jax.random.key(0), jnp.array([0]))
    x = jax.random.normal(jax.random.key(1), (6, 8))
    assert matmul.few(x)
    attend = jax.jit(functools.partial(embed.apply, params, method='attend'))
    tolerance = 1e-6 if dtype == jnp.float32 else 0.02
    np.testing.assert_allclose(attend(x), attend(x[None])[0], rtol=tolerance, atol=tolerance)


def test_a_small_batch_sums_the_gradient_of_the_table_in_float32():
    embed = Embed(3, 1, jnp.bfloat16)
    params = {'params': {'embedding': jnp.ones((3, 1))}}
    x = jnp.array([[[256.0], [1.0]]])  # 257 has no bfloat16
    grad = jax.grad(lambda p: jnp.sum(embed.apply(p, x, method='attend')))(params)
    np.testing.assert_array_equal(grad['params']['embedding'], [[257.0]] * 3)


@pytest.mark.parametrize('width', [4, 5])
def test_sinusoids(width):
    waves = np.asarray(sinusoids(jnp.array([[0, 1, 50]]), width))[0]
    assert waves.shape == (3, width)
    half = -(-width // 2)
    np.testing.assert_allclose(waves[0], [0.0] * half + [1.0] * (width - half))
    np.testing.assert_allclose(waves[:, 0], np.sin([0, 1, 50]), atol=1e-5)
    np.testing.assert_allclose(waves[2, 1], np.sin(50 / 10_000 ** (1 / half)), atol=1e-5)
