"""Layers of linear attention: packing, decoding, sharding, and what their parameters begin with."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import attention, config, decode, mesh, tree
from lm.errors import InputError
from lm.layers import mixers
from lm.layers.tokens import Tokens
from lm.models.decoder import Decoder

PARSED = config.parse(base.get_config())
BASE = dataclasses.replace(
    PARSED.model, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, vocab_multiple=8
)
VOCAB, LENGTH = 13, 32
KINDS = ['linear', 'performer(features=8)', 'gated_linear(rank=3)', 'gated_delta(expand=2)']
all_kinds = pytest.mark.parametrize('text', KINDS)

# The convolutions are wider than the shortest prompt.
PROMPTS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [7, 0, 0, 0, 0]], np.int32)
LENGTHS = np.array([5, 3, 1], np.int32)


def drawn(shapes, seed=0, scale=0.4):
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if path.endswith('scale') else 0.0
        return jnp.asarray(center + scale * rng.normal(size=leaf.shape), jnp.float32)

    return tree.map_with_path(draw, shapes)


@functools.cache
def make(*patterns, **changes):
    """Returns a decoder, and parameters large enough for each part to matter."""
    model = Decoder(dataclasses.replace(BASE, attention=patterns, **changes), VOCAB, LENGTH)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))['params']
    return model, drawn(shapes)


def make_layer(text, **changes):
    """Returns a function `(x, tokens, cache) -> y, cache` of one layer, and its kind and config."""
    c = dataclasses.replace(BASE, **changes)
    kind = attention.parse(text)
    layer = mixers.mixer(kind)(c, kind)
    x = jnp.zeros((1, 2, c.embed_dim))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x, Tokens())['params']
    return functools.partial(layer.apply, {'params': drawn(shapes)}), kind, c


@pytest.mark.slow
@all_kinds
def test_gradients_of_later_tokens_are_exactly_zero(text):
    apply, *_ = make_layer(text)
    x = np.random.default_rng(0).normal(size=(1, 9, 16)).astype(np.float32)
    segments = np.array([[1] * 5 + [2] * 4])

    def sums(x):
        return jnp.sum(jnp.sin(apply(x, Tokens(segments=segments))[0]), axis=(0, 2))  # [T]

    matrix = np.abs(jax.jit(jax.jacrev(sums))(x)).sum(axis=(1, 3))
    seen = np.tri(9, dtype=bool) & (segments[0][:, None] == segments[0])
    np.testing.assert_array_equal(matrix > 0, seen)


@pytest.mark.slow
@all_kinds
def test_packed_documents_are_as_alone(text):
    """In values and gradients of parameters, whatever is in the padding."""
    model, params = make(text, 'causal & window(5)')
    documents = [[0, 7, 3, 9, 1, 2, 2], [4, 0, 11, 3]]

    def batch(*rows, padding):
        width = 14
        return {
            'inputs': np.array([sum(r, []) + [padding] * (width - len(sum(r, []))) for r in rows]),
            'positions': np.array(
                [
                    sum(([*range(len(d))] for d in r), []) + [0] * (width - len(sum(r, [])))
                    for r in rows
                ]
            ),
            'segment_ids': np.array(
                [
                    sum(([i + 1] * len(d) for i, d in enumerate(r)), [])
                    + [0] * (width - len(sum(r, [])))
                    for r in rows
                ]
            ),
        }

    @jax.jit
    def pull(params, batch, cotangent):
        logits, back = jax.vjp(lambda p: model.apply({'params': p}, **batch), params)
        return logits, back(cotangent)[0]

    weights = np.random.default_rng(0).normal(size=(11, 16)).astype(np.float32)
    packed = np.zeros((2, 14, 16), np.float32)
    packed[0, :11] = weights
    got, got_grads = pull(params, batch(documents, [[]], padding=5), packed)
    apart = np.zeros((2, 14, 16), np.float32)
    apart[0, :7], apart[1, :4] = weights[:7], weights[7:]
    want, want_grads = pull(params, batch(*([d] for d in documents), padding=8), apart)
    np.testing.assert_allclose(got[0, :7], want[0, :7], atol=1e-5)
    np.testing.assert_allclose(got[0, 7:11], want[1, :4], atol=1e-5)
    assert np.isfinite(got).all()
    for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.first_quick
@pytest.mark.parametrize(
    'changes', [{}, {'qk_norm': True, 'bias': True, 'position': 'none'}], ids=str
)
@all_kinds
def test_a_layer_in_pieces_is_the_whole(text, changes):
    """Rows of unequal lengths, read four tokens at a time, then one at a time."""
    apply, kind, c = make_layer(text, **changes)
    x = np.random.default_rng(0).normal(size=(3, 12, 16)).astype(np.float32)
    want, none = jax.jit(lambda x: apply(x, Tokens()))(x)
    assert none is None

    @jax.jit
    def go(x, places, cache):
        return apply(x, Tokens(places=places), cache)

    cache = mixers.make_cache(c, kind, 3, 12)
    starts, counts, rows = np.zeros(3, int), np.array([4, 2, 0]), np.arange(3)[:, None]
    for width in (4, 4, 1, 1, 1, 1):
        counts = np.minimum(counts, width)
        places = starts[:, None] + np.arange(width)
        real = np.arange(width) < counts[:, None]
        piece = np.where(real[..., None], x[rows, np.minimum(places, 11)], 77.0)
        before = cache
        got, cache = go(piece, np.where(real, places, -1), cache)
        for row, t in zip(*np.nonzero(real), strict=True):
            np.testing.assert_allclose(got[row, t], want[row, places[row, t]], atol=1e-5)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(cache), strict=True):
            np.testing.assert_array_equal(a[counts == 0], b[counts == 0])
            assert a.dtype == b.dtype
        cache = mixers.grow(cache, kind, 100)
        starts, counts = starts + counts, np.array([4, 4, 4])


@pytest.mark.slow
@all_kinds
def test_generation_is_argmax_repeated(text):
    """Prompts of unequal lengths, in a pattern with a window that the cache forgets beyond."""
    model, params = make(text, 'causal & window(5)')
    apply = jax.jit(model.apply)
    rows = [prompt[:length].tolist() for prompt, length in zip(PROMPTS, LENGTHS, strict=True)]
    for _ in range(9):
        padded = np.zeros((3, 16), np.int32)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        logits = apply({'params': params}, padded)[..., :VOCAB]
        rows = [[*row, int(np.argmax(logits[i, len(row) - 1]))] for i, row in enumerate(rows)]
    got, _ = decode.generate(
        *(model, params, PROMPTS, LENGTHS, jax.random.key(0)),
        max_tokens=9,
        sampling=decode.Sampling(temperature=0.0),
        stop=(),
    )
    want = np.array([row[-9:] for row in rows])
    np.testing.assert_array_equal(got, want)
    assert len(np.unique(want)) > 3  # or the test would not see much


@pytest.mark.first_quick
@all_kinds
def test_parameters_for_decoding_give_the_same(text):
    """To the bit: in 16 bits each of them is rounded before it is used, by either."""
    model, params = make(text, dtype='bfloat16')
    places = np.broadcast_to(np.arange(5, dtype=np.int32), (3, 5))

    @jax.jit
    def go(params):
        cache = model.make_cache(3, 8)
        return model.apply({'params': params}, PROMPTS, places, cache, method='decode')

    jax.tree.map(
        np.testing.assert_array_equal,
        *(
            jax.tree.map(lambda x: x.astype(np.float32), go(p))
            for p in (params, model.for_decoding(params))
        ),
    )


@all_kinds
def test_a_cache_has_one_size(text):
    kind = attention.parse(text)
    short, long = (
        jax.eval_shape(lambda n=n: mixers.make_cache(BASE, kind, 2, n)) for n in (8, 10**6)
    )
    assert short == long
    assert tree.size(long) < 2 * 4 * 16 * 17


def test_both_directions_cannot_generate():
    model, params = make('linear(causal=0)')
    inputs = np.zeros((1, 4), np.int32)
    with pytest.raises(InputError, match='cannot generate'):
        model.apply({'params': params}, inputs, inputs, model.make_cache(1, 4), method='decode')
    changed = np.array([[0, 0, 0, 1]])
    first, second = (model.apply({'params': params}, x) for x in (inputs, changed))
    assert (np.abs(first - second)[0, 0] > 1e-6).any()


@pytest.mark.first_quick
@pytest.mark.parametrize('position', ['rotary', 'none'])
@all_kinds
def test_rotary_positions_are_for_those_without_gates(text, position):
    model, params = make(text, position=position)
    inputs = np.array([[1, 2, 3, 4]])
    near, far = (
        model.apply({'params': params}, inputs, np.array([place]))
        for place in ([0, 1, 2, 3], [0, 5, 9, 30])
    )
    turns = position == 'rotary' and not text.startswith('gated')
    assert (np.abs(near - far).max() > 1e-4) == turns


@pytest.mark.slow
@pytest.mark.parametrize('pattern', [tuple(KINDS[:2]), tuple(KINDS[2:])], ids=str)
def test_sharded_equals_unsharded(pattern):
    """On 8 devices, in values and gradients, with packed rows."""
    model, params = make(*pattern, bias=True)
    rng = np.random.default_rng(0)
    inputs = rng.integers(VOCAB, size=(4, 20)).astype(np.int32)
    segments = np.sort(rng.integers(1, 3, size=(4, 20)), axis=1).astype(np.int32)

    def loss(params, inputs, segments):
        logits = model.apply({'params': params}, inputs, segment_ids=segments)
        return jnp.mean(jnp.sin(logits))

    want = jax.jit(jax.value_and_grad(loss))(params, inputs, segments)
    devices = mesh.make(mesh.sizes(data=2, fsdp=2, tensor=2, sequence=1))
    with jax.set_mesh(devices):
        got = jax.jit(jax.value_and_grad(loss))(
            jax.device_put(params, mesh.parameter_shardings(params, devices)),
            *jax.device_put((inputs, segments), mesh.batch_sharding(devices)),
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_every_parameter_has_a_rule_and_kernels_alone_decay():
    _, params = make(*KINDS, num_layers=4, bias=True, qk_norm=True, norm='layernorm')
    device_mesh = mesh.make(mesh.sizes(data=1, fsdp=4, tensor=2, sequence=1))
    shardings = mesh.parameter_shardings(params, device_mesh)
    for path, leaf, sharding in zip(
        tree.paths(params), jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True
    ):
        split = leaf.size // np.prod(sharding.shard_shape(leaf.shape))
        if re.search('(gate|beta|decay|query|value)/kernel', path):
            assert split == 8, path
        elif 'attention/' in path and 'norm' not in path and 'out/bias' not in path:
            assert split > 1, path
        kernel = path.endswith(('kernel', 'embedding'))
        assert bool(re.search(PARSED.optimizer.decay_paths, path)) == kernel
        if kernel:
            assert leaf.ndim > 2 or path.startswith('embed')


@pytest.mark.slow
def test_first_decays_are_those_of_the_papers():
    c = dataclasses.replace(BASE, num_heads=512, num_kv_heads=0, embed_dim=512, head_dim=2)

    def init(text):
        kind = attention.parse(text)
        layer = mixers.mixer(kind)(c, kind)
        return jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, 512)), Tokens())['params']

    delta = init('gated_delta')
    rate, step = np.exp(delta['decay']['log_rate']), jax.nn.softplus(delta['decay']['bias'])
    assert 0 < rate.min() < 0.5
    assert 15.5 < rate.max() < 16
    np.testing.assert_allclose(rate.mean(), 8, rtol=0.1)
    assert 0.001 <= step.min() < 0.0011
    assert 0.09 < step.max() <= 0.1
    np.testing.assert_allclose(np.median(step), 0.01, rtol=0.2)
    conv = delta['query_conv']['kernel']
    assert conv.shape == (4, 512, 2)
    assert 0.49 < np.abs(conv).max() <= 0.5
    np.testing.assert_allclose(conv.mean(), 0, atol=0.02)
    assert (np.asarray(init('gated_linear')['decay']['up']['bias']) == 0).all()
