"""Decoding against the full forward pass, and sampling against distributions written out by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, decode, mesh, tree
from lm.attention.masks import causal, global_tokens, window
from lm.decode import Sampling, filter_logits, generate, sample
from lm.errors import InputError
from lm.layers import attention
from lm.layers.attention import Attention
from lm.models.decoder import Decoder

BASE = dataclasses.replace(
    config.parse(base.get_config()).model, num_layers=2, embed_dim=16, num_heads=4, vocab_multiple=8
)
VOCAB, LENGTH = 13, 64
GREEDY = Sampling(temperature=0.0)
PROMPTS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [7, 0, 0, 0, 0]], np.int32)
LENGTHS = np.array([5, 3, 1], np.int32)


def make(length=LENGTH, **changes):
    """Returns a model and parameters, made once."""
    model, params = made(length, tuple(changes.items()))
    return model, jax.tree.map(lambda leaf: leaf, params)


@functools.cache
def made(length, changes):
    changes = dict(changes)
    model = Decoder(dataclasses.replace(BASE, **changes), VOCAB, length)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))['params']
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        center = 1.0 if path.endswith('scale') else 0.0
        return jnp.asarray(center + 0.5 * rng.normal(size=leaf.shape), jnp.float32)

    return model, tree.map_with_path(draw, shapes)


def run(model, params, prompts=PROMPTS, lengths=LENGTHS, seed=0, **options):
    options = {'max_tokens': 10, 'sampling': GREEDY, 'stop': (), **options}
    return generate(model, params, prompts, lengths, jax.random.key(seed), **options)


@functools.cache
def whole(model):
    """Returns the forward pass, compiled once for a model."""
    return jax.jit(model.apply)


def repeated_argmax(model, params, prompt, count):
    """Greedy by full forward passes; a row of `max_length` tokens goes on from its last half."""
    row, tokens = list(prompt), []
    while len(tokens) < count:
        if len(row) >= model.max_length:
            row = row[-(model.max_length // 2) :]
        padded = np.zeros((1, model.max_length), np.int32)
        padded[0, : len(row)] = row
        logits = whole(model)({'params': params}, padded)[0, len(row) - 1, :VOCAB]
        tokens.append(int(np.argmax(logits)))
        row.append(tokens[-1])
    return tokens


@pytest.mark.first_quick
@pytest.mark.parametrize('changes', [{}, {'position': 'learned'}, {'position': 'alibi'}])
def test_greedy_is_argmax_repeated(changes):
    model, params = make(**changes)
    got, counts = run(model, params)
    assert got.shape == (3, 10)
    np.testing.assert_array_equal(counts, [10, 10, 10])
    for tokens, prompt, length in zip(got, PROMPTS, LENGTHS, strict=True):
        assert tokens.tolist() == repeated_argmax(model, params, prompt[:length], 10)
    assert len(np.unique(got)) > 3  # or the test would not see much


@pytest.mark.slow
def test_a_cache_that_grows_on_the_way_changes_nothing(monkeypatch):
    model, params = make()
    prompts = np.random.default_rng(0).integers(0, VOCAB, (3, 16), np.int32)
    arguments = model, params, prompts, np.array([16, 9, 1])  # the first fills its width
    want, _ = run(*arguments, max_tokens=16)
    lengths, grow = [], Decoder.grow
    monkeypatch.setattr(decode, '_SPLIT', 16)  # or the room for 16 tokens would be made at once
    monkeypatch.setattr(
        Decoder,
        'grow',
        lambda self, cache, length: lengths.append(length) or grow(self, cache, length),
    )
    decode._continue.clear_cache()
    got, _ = run(*arguments, max_tokens=16)
    decode._continue.clear_cache()
    assert lengths == [16 + 8, 16 + 16]
    np.testing.assert_array_equal(got, want)


@pytest.mark.first_quick
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('masks', [('causal',), ('causal', 'causal')])
def test_parameters_for_decoding_give_the_same(dtype, masks):
    model, params = make(dtype=dtype, attention=masks, num_layers=4, position='rotary')
    places = np.broadcast_to(np.arange(5, dtype=np.int32), (3, 5))

    @jax.jit
    def logits(params):
        variables = {'params': params}
        cache = model.make_cache(3, 8)
        hidden, cache = model.apply(variables, PROMPTS, places, cache, method='decode')
        return model.apply(variables, hidden, method='logits'), cache

    for a, b in zip(
        jax.tree.leaves(logits(params)),
        jax.tree.leaves(logits(model.for_decoding(params))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    want = whole(model)({'params': params}, PROMPTS)
    tolerance = 1e-5 if dtype == 'float32' else 0.05
    np.testing.assert_allclose(logits(params)[0], want, atol=tolerance * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_loop_has_no_stacked_and_no_unrounded_matrix(dtype):
    """It would take the layers apart, or round them, for each token."""
    model, params = make(dtype=dtype)
    step = functools.partial(
        decode._continue, model=model, sampling=GREEDY, stop=(), stream=None, ordered=True, size=16
    )
    jaxpr = jax.make_jaxpr(step)(
        params, PROMPTS, LENGTHS, None, np.zeros(3, bool), jax.random.key(0), 0, 10
    )
    (inner,) = (e.params['jaxpr'] for e in jaxpr.eqns if 'jaxpr' in e.params)
    (loop,) = (e for e in inner.eqns if e.primitive.name == 'while')
    arrays = [v.aval for v in loop.invars]
    assert not [a for a in arrays if a.shape == (2, 16, 64)]  # the stack of an MLP's kernels
    assert {a.dtype for a in arrays if a.shape == (16, 64)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
def test_cache_returns_what_was_written(dtype):
    c = dataclasses.replace(BASE, dtype=jnp.dtype(dtype).name)
    new = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 4)), dtype)  # [B, T, G, K]
    places = np.array([[0, 1, 2], [4, 5, 6]], np.int32)  # 6 is past the end, and dropped
    cache = Attention.make_cache(c, causal, 2, 6)
    cache = attention.write(cache, new, -new, places, causal.reach())
    cache = Attention.grow(cache, causal, 9)
    for name, want in (('key', new), ('value', -new)):
        got = attention.read(cache[name], dtype)
        assert got.shape == (2, 9, 4, 4)
        np.testing.assert_array_equal(got[0, :3], want[0])
        np.testing.assert_array_equal(got[1, 4:6], want[1, :2])
        assert not got[0, 3:].any()
        assert not got[1, :4].any()
        assert not got[1, 6:].any()


@pytest.mark.slow
def test_a_cache_that_forgets_keeps_the_pinned_and_the_last():
    mask = causal & (window(3) | global_tokens(2))
    c = dataclasses.replace(BASE, num_kv_heads=1)
    cache = Attention.make_cache(c, mask, 2, 4)
    numbers = jnp.arange(100.0).reshape(1, 100, 1, 1) * jnp.ones((2, 1, 1, 4))

    def write(cache, *rows):
        """Each row's tokens are numbered by their places."""
        places = np.array(rows, np.int32)
        new = jnp.stack([row[np.maximum(p, 0)] for row, p in zip(numbers, places, strict=True)])
        return attention.write(cache, new, new, places, mask.reach())

    def content(cache):
        kept = attention.read(cache['key'], jnp.float32)[:, :, 0, 0]
        np.testing.assert_array_equal(np.where(cache['place'] < 0, 0, cache['place']), kept)
        return [sorted(int(p) for p in row if p >= 0) for row in cache['place']]

    cache = write(cache, [0, 1, 2, 3], [0, 1, -1, -1])
    assert content(cache) == [[0, 1, 2, 3], [0, 1]]
    cache = Attention.grow(cache, mask, 9)
    assert cache['key'].shape[2] == 5  # two pinned, three recent
    cache = write(cache, [4, 5, 6], [2, 3, -1])
    assert content(cache) == [[0, 1, 4, 5, 6], [0, 1, 2, 3]]
    for place in (7, 8):
        cache = write(cache, [place], [-1])
    assert content(cache) == [[0, 1, 6, 7, 8], [0, 1, 2, 3]]
    cache = write(cache, list(range(9, 20)), [4] + [-1] * 10)  # more than there are slots
    assert content(cache) == [[0, 1, 17, 18, 19], [0, 1, 2, 3, 4]]


@pytest.mark.first_quick
@pytest.mark.parametrize(
    'masks',
    [
        ('causal & window(4)',),
        ('gpt3(3)',),
        ('causal & (window(2) | strided(3))', 'causal & longformer(3, 2)'),
        ('causal & (chunks(4) | summaries(4, 1))', 'causal & random_blocks(1, 0, 2)'),
        ('heads(causal, causal & window(2))', 'causal & window(1)'),
    ],
)
def test_masks_see_in_decoding_what_they_see_in_training(masks):
    model, params = make(attention=masks, position='rotary', num_layers=2 * len(masks))
    got, _ = run(model, params, max_tokens=20)
    for tokens, prompt, length in zip(got, PROMPTS, LENGTHS, strict=True):
        assert tokens.tolist() == repeated_argmax(model, params, prompt[:length], 20)


def test_the_cache_of_a_window_is_as_long_as_the_window():
    model, _ = make(attention=('causal', 'causal & (window(4) | global_tokens(2))'))
    (cache,) = jax.eval_shape(lambda: model.make_cache(3, 50))
    assert cache['block_0']['key'].shape == (3, 4, 50, 4)
    assert cache['block_1']['key'].shape == (3, 4, 6, 4)


@pytest.mark.first_quick
@pytest.mark.parametrize('position', ['learned', 'rotary'])
def test_goes_on_past_the_context(position):
    model, params = make(length=8, position=position)
    got, _ = run(model, params, max_tokens=21)
    for tokens, prompt, length in zip(got, PROMPTS, LENGTHS, strict=True):
        assert tokens.tolist() == repeated_argmax(model, params, prompt[:length], 21)


@pytest.mark.first_quick
@pytest.mark.parametrize('sampling', [GREEDY, Sampling(0.9, top_k=7, top_p=0.95, min_p=0.01)])
def test_rows_do_not_see_each_other(sampling):
    """One row changed: the others stay, also where it makes the window move or a row end."""
    model, params = make(length=16)
    first, _ = run(model, params, sampling=sampling, max_tokens=20)
    prompts = np.concatenate([PROMPTS, PROMPTS[:, ::-1]], axis=1)  # wider padding
    prompts[0] = 11
    second, _ = run(model, params, prompts, np.array([10, 3, 1]), sampling=sampling, max_tokens=20)
    np.testing.assert_array_equal(first[1:], second[1:])
    assert (first[0] != second[0]).any()


def test_one_at_a_time_is_the_same():
    model, params = make()
    together, _ = run(model, params)
    for row in range(3):
        alone, _ = run(
            model, params, PROMPTS[row : row + 1, : LENGTHS[row]], LENGTHS[row : row + 1]
        )
        np.testing.assert_array_equal(alone[0], together[row])


def test_stop_tokens_end_rows():
    model, params = make()
    free, _ = run(model, params)
    stops = (int(free[0, 3]), int(free[1, 5]))
    ends = [next((i for i, token in enumerate(row) if token in stops), len(row)) for row in free]
    assert min(ends) < 10
    got, counts = run(model, params, stop=stops)
    np.testing.assert_array_equal(counts, ends)
    for row, tokens, end in zip(got, free, ends, strict=True):
        np.testing.assert_array_equal(row, np.where(np.arange(10) < end, tokens, 0))


def test_all_ended_stops_early():
    model, params = make()
    steps = []
    got, counts = run(
        model, params, stop=tuple(range(VOCAB)), stream=lambda tokens: steps.append(tokens)
    )
    assert len(steps) == 1
    assert (got == 0).all()
    assert (counts == 0).all()


def test_stream_gets_each_step_in_order():
    model, params = make()
    steps = []

    def stream(tokens):
        steps.append(np.array(tokens))

    free, _ = run(model, params)
    got, counts = run(model, params, stop=(int(free[1, 4]),), stream=stream)
    shown = np.stack(steps, axis=1)
    for row, tokens, count in zip(shown, got, counts, strict=True):
        np.testing.assert_array_equal(row[:count], tokens[:count])
        assert (row[count:] == -1).all()


@pytest.mark.slow
def test_padding_ids_are_never_drawn():
    """vocab_multiple adds ids 13, 14, 15; make them by far the likeliest."""
    model, params = make(tie_embeddings=False)
    params['head']['kernel'] = params['head']['kernel'].at[:, VOCAB:].multiply(100.0)
    got, _ = run(model, params, sampling=Sampling(2.0), max_tokens=30)
    assert got.max() < VOCAB


def test_seed_decides():
    model, params = make()
    first, second, other = (
        run(model, params, seed=seed, sampling=Sampling(1.5))[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_near_shapes_compile_once():
    model, params = make()
    decode._continue.clear_cache()
    for width, count in ((5, 10), (4, 9), (5, 16)):
        run(model, params, PROMPTS[:, :width], np.minimum(LENGTHS, width), max_tokens=count)
    assert decode._continue._cache_size() == 1


@pytest.mark.slow
def test_sharded_parameters():
    model, params = make()
    want, _ = run(model, params)
    devices = mesh.make(mesh.sizes(data=2, fsdp=2, tensor=2, sequence=1))
    steps = []
    with jax.set_mesh(devices):
        sharded = jax.device_put(params, mesh.parameter_shardings(params, devices))
        got, _ = run(model, sharded, stream=lambda tokens: steps.append(np.array(tokens)))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.stack(steps, axis=1), want)


@pytest.mark.parametrize(
    ('lengths', 'prompts'), [([0], [[1]]), ([3], [[1, 2]]), ([], np.zeros((0, 1), np.int32))]
)
def test_empty_prompts(lengths, prompts):
    model, params = make()
    with pytest.raises(InputError, match='at least one token'):
        run(model, params, np.array(prompts), np.array(lengths, np.int32))


PROBABILITIES = np.array([0.05, 0.4, 0.25, 0.1, 0.2])


@pytest.mark.parametrize(
    ('sampling', 'kept'),
    [
        (Sampling(), [0, 1, 2, 3, 4]),
        (Sampling(top_k=1), [1]),
        (Sampling(top_k=3), [1, 2, 4]),
        (Sampling(top_k=99), [0, 1, 2, 3, 4]),
        (Sampling(top_p=0.39), [1]),
        (Sampling(top_p=0.41), [1, 2]),
        (Sampling(top_p=0.8), [1, 2, 4]),
        (Sampling(top_p=0.0), [1]),
        (Sampling(min_p=0.45), [1, 2, 4]),
        (Sampling(min_p=1.0), [1]),
        # Of 0.95 left, the first three are 0.85: 0.895 of it, not yet 0.9.
        (Sampling(top_k=4, top_p=0.9), [1, 2, 3, 4]),
        (Sampling(temperature=0.5, min_p=0.3), [1, 2]),  # squared: 0.16, 0.0625, 0.04
    ],
)
def test_filters_literal(sampling, kept):
    """What is kept has the probabilities p^(1/temperature), divided by their sum."""
    got = np.asarray(jax.nn.softmax(filter_logits(jnp.log(PROBABILITIES), sampling)))
    want = np.where(np.isin(np.arange(5), kept), PROBABILITIES ** (1 / sampling.temperature), 0)
    np.testing.assert_allclose(got, want / want.sum(), atol=1e-6)


def test_sample_follows_the_distribution():
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES), (20_000, 5))
    drawn = np.asarray(sample(logits, jax.random.key(0), Sampling(top_k=3)))
    want = np.array([0, 0.4, 0.25, 0, 0.2]) / 0.85
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 20_000, want, atol=0.02)
    assert (sample(logits, jax.random.key(0), GREEDY) == 1).all()


@pytest.mark.parametrize(
    'wrong', [{'temperature': -1.0}, {'top_k': -1}, {'top_p': 1.1}, {'min_p': -0.1}]
)
def test_sampling_ranges(wrong):
    with pytest.raises(InputError, match=f'{next(iter(wrong))} = .* is out of range'):
        Sampling(**wrong)
