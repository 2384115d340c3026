"""Chosen blocks in a decoder: decoding equals training, on one device and on several."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, mesh, tree
from lm.decode import Sampling, generate
from lm.layers import mixers
from lm.models.decoder import Decoder

BASE = dataclasses.replace(
    config.parse(base.get_config()).model,
    **{'num_layers': 2, 'embed_dim': 16, 'num_heads': 4, 'mlp_dim': 24},
    **{'vocab_multiple': 8, 'tie_embeddings': False},
)
VOCAB, LENGTH = 13, 32
PATTERNS = {
    'topk': {'attention': ('topk(2, 4)',), 'num_kv_heads': 2},
    'topk every': {'attention': ('topk(3, 4, 2)', 'causal'), 'position': 'alibi'},
    'nsa': {'attention': ('nsa(3, 4, 5, 4, 2)',), 'num_kv_heads': 2},
    'nsa every': {
        'attention': ('nsa(3, 8, 5, 6, 2, 4)', 'causal'),
        'position': 'alibi',
        'bias': True,
    },
    'topk bfloat16': {'attention': ('topk(2, 4)',), 'dtype': 'bfloat16'},
}
patterns = pytest.mark.parametrize('name', PATTERNS)


@functools.cache
def make(name, seed=0):
    """Returns a decoder, and parameters large enough for each part to matter."""
    model = Decoder(dataclasses.replace(BASE, **PATTERNS[name]), VOCAB, LENGTH)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))['params']
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if path.endswith('scale') else 0.0
        return jnp.asarray(center + 0.4 * rng.normal(size=leaf.shape), jnp.float32)

    return model, tree.map_with_path(draw, shapes)


def tokens(batch, length=LENGTH):
    return np.random.default_rng(0).integers(VOCAB, size=(batch, length)).astype(np.int32)


@pytest.mark.first_quick
@patterns
def test_decoding_equals_the_whole(name):
    """Four tokens at a time, in rows that begin with 4, 2 and 3: what pads a shorter one does no harm."""
    model, params = make(name)
    inputs = tokens(3)
    want = jax.jit(model.apply)({'params': params}, inputs)

    @jax.jit
    def decode(inputs, positions, cache):
        hidden, cache = model.apply({'params': params}, inputs, positions, cache, method='decode')
        return model.apply({'params': params}, hidden, method='logits'), cache

    atol = 1e-5 if model.config.dtype == 'float32' else 0.1
    cache, rows = model.make_cache(3, LENGTH), np.arange(3)[:, None]
    starts, valid = np.zeros(3, np.int32), np.array([4, 2, 3], np.int32)
    while (starts < LENGTH).any():
        places = starts[:, None] + np.arange(4, dtype=np.int32)
        real = (np.arange(4) < valid[:, None]) & (places < LENGTH)
        chunk = np.where(real, inputs[rows, np.minimum(places, LENGTH - 1)], 6)
        got, cache = decode(chunk, places, cache)
        for row, t in zip(*np.nonzero(real), strict=True):
            np.testing.assert_allclose(got[row, t], want[row, places[row, t]], atol=atol)
        starts, valid = starts + valid, np.array([4, 4, 4], np.int32)


@pytest.mark.first_quick
@pytest.mark.parametrize('name', ['topk', 'nsa every'])
def test_generating_is_argmax_repeated(name):
    """From prompts of unequal lengths, read at once and then a token at a time."""
    model, params = make(name)
    lengths = np.array([14, 9, 1], np.int32)
    prompts = tokens(3, 14)
    sampling = Sampling(temperature=0.0)
    got, _ = generate(
        model,
        params,
        prompts,
        lengths,
        jax.random.key(0),
        max_tokens=16,
        sampling=sampling,
        stop=(),
    )
    apply = jax.jit(model.apply)
    rows, each = np.pad(prompts, ((0, 0), (0, LENGTH - 14))), np.arange(3)
    for t in range(16):
        logits = np.asarray(apply({'params': params}, rows))[each, lengths + t - 1, :VOCAB]
        rows[each, lengths + t] = logits.argmax(axis=-1)
        np.testing.assert_array_equal(got[:, t], rows[each, lengths + t])
    assert len(np.unique(got)) > 3  # or the test would not see much


@patterns
def test_a_cache_grows_to_what_it_would_have_been(name):
    model, _ = make(name)
    for kind in model.kinds:
        arguments = model.config, kind, 2
        small, large = (mixers.make_cache(*arguments, length) for length in (6, 30))
        grown = mixers.grow(small, kind, 30)
        jax.tree.map(np.testing.assert_array_equal, grown, large)


@patterns
def test_parameters_are_covered_by_sharding_rules(name):
    for path in tree.paths(make(name)[1]):
        tree.first_match(mesh.PARAMETER_RULES, path)


@pytest.mark.first_quick
@pytest.mark.parametrize('name', ['topk', 'nsa every'])
def test_every_parameter_learns(name):
    model, params = make(name)
    loss = lambda params: jnp.mean(jnp.sin(model.apply({'params': params}, tokens(2))))  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)
    for path, leaf in zip(tree.paths(gradient), jax.tree.leaves(gradient), strict=True):
        assert np.abs(leaf).max() > 0, path


@pytest.mark.first_quick
@pytest.mark.parametrize('name', [name for name in PATTERNS if ' ' not in name])
def test_sharded_equals_unsharded(name):
    """On 8 devices, in values and gradients."""
    model, params = make(name)
    inputs = tokens(4)

    def loss(params, inputs):
        return jnp.mean(jnp.sin(model.apply({'params': params}, inputs)))

    want = jax.jit(jax.value_and_grad(loss))(params, inputs)
    devices = mesh.make(mesh.sizes(data=1, fsdp=2, tensor=2, sequence=2))
    with jax.set_mesh(devices):
        got = jax.jit(jax.value_and_grad(loss))(
            jax.device_put(params, mesh.parameter_shardings(params, devices)),
            jax.device_put(inputs, mesh.batch_sharding(devices)),
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
