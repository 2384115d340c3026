"""Native sparse attention against an oracle that takes one query at a time, and what must hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import nsa
from lm.attention.block import Extras
from lm.attention.expression import parse
from lm.attention.nsa import NSA
from lm.errors import InputError

SEGMENTS = np.array([[1] * 9 + [2] * 13 + [3] * 12 + [0] * 3, [1] * 8 + [2] * 29])
SPECS = [NSA(3, 4, 5, 4, 2), NSA(4, 4, 6, 12, 4), NSA(3, 8, 3, 6, 2, 1)]
specs = pytest.mark.parametrize('spec', SPECS, ids=str)
EXTRAS = Extras(softcap=2.0, slopes=(0.5, 0.25, 0.125, 0.0625))


def inputs(spec, length=37, batch=2, heads=4, groups=2, width=6, seed=0):
    """Returns queries, keys, values, gates, and weights of summaries of keys and of values."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, n, width) for n in (heads, groups, groups)]
    arrays = [rng.normal(size=s) for s in (*shapes, (batch, length, heads, 3))]
    arrays += [rng.normal(size=(spec.length, groups, width)) / spec.length for _ in range(2)]
    return [x.astype(np.float32) for x in arrays]


def run(arrays, spec, **options):
    query, key, value, gates, *weights = arrays
    return nsa.attend(query, key, value, gates, tuple(weights), spec, **options)


def softmax(query, keys, distances, head, extras):
    logits = keys @ query / np.sqrt(len(query))
    if extras is not None:
        logits = extras.softcap * np.tanh(logits / extras.softcap)
        logits -= extras.slopes[head] * distances
    weights = np.exp(logits - logits.max(initial=-np.inf))
    return weights / weights.sum()


def oracle(arrays, spec, segments=None, extras=None):
    """One query and head at a time, in float64."""
    query, key, value, gates, key_weights, value_weights = (
        np.asarray(x, np.float64) for x in arrays
    )
    (batch, length, heads, _), groups = query.shape, key.shape[2]
    if segments is None:
        segments = np.ones((batch, length), int)
    out = np.zeros_like(query)

    def summaries(b, t, g):
        """Those that a query may see: their places, keys and values."""
        starts = [
            s
            for s in range(0, t - spec.length + 2, spec.stride)
            if (segments[b, s : s + spec.length] == segments[b, t]).all()
        ]
        places = [np.arange(s, s + spec.length) for s in starts]
        keys = [(key[b, p, g] * key_weights[:, g]).sum(0) for p in places]
        values = [(value[b, p, g] * value_weights[:, g]).sum(0) for p in places]
        return places, np.array(keys), np.array(values)

    def summary_weights(b, t, h):
        places, keys, _ = summaries(b, t, h * groups // heads)
        distances = t - np.array([p[-1] for p in places])
        return softmax(query[b, t, h], keys, distances, h, extras) if places else []

    def chosen(b, t, g):
        first = t // spec.every * spec.every
        own = first // spec.size
        same = np.flatnonzero(segments[b, : first + 1] == segments[b, first]) // spec.size
        scores = dict.fromkeys(same.tolist(), 0.0)  # blocks with tokens of this document
        scores[own - 1] = scores[own - 1] + 9 if own - 1 in scores else -1
        scores[min(same)] += 9
        places, _, _ = summaries(b, first, g)
        for h in range(g * heads // groups, (g + 1) * heads // groups):
            for weight, p in zip(summary_weights(b, first, h), places, strict=True):
                for stride in range(0, spec.length, spec.stride):
                    scores[p[stride] // spec.size] += weight
        best = [n for n in sorted(scores, key=scores.get, reverse=True) if n != own]
        return [own, *(n for n in best[: spec.blocks - 1] if scores[n] >= 0)]

    for b, t, h in np.ndindex(batch, length, heads):
        g = h * groups // heads
        places, _, values = summaries(b, t, g)
        if places:
            out[b, t, h] += gates[b, t, h, 0] * (summary_weights(b, t, h) @ values)
        all_places = np.flatnonzero(segments[b, : t + 1] == segments[b, t])
        blocks = all_places[np.isin(all_places // spec.size, chosen(b, t, g))]
        window = all_places[all_places > t - spec.window]
        for i, seen in ((1, blocks), (2, window)):
            weights = softmax(query[b, t, h], key[b, seen, g], t - seen, h, extras)
            out[b, t, h] += gates[b, t, h, i] * (weights @ value[b, seen, g])
    return out


@pytest.mark.first_quick
@specs
@pytest.mark.parametrize(
    ('segments', 'extras'), [(None, None), (SEGMENTS, EXTRAS)], ids=['one', 'packed']
)
def test_equals_the_oracle(spec, segments, extras):
    arrays = inputs(spec)
    options = {} if extras is None else {'extras': extras}
    got = jax.jit(lambda *arrays: run(arrays, spec, segments=segments, **options))(*arrays)
    np.testing.assert_allclose(got, oracle(arrays, spec, segments, extras), atol=5e-6)


def dense(arrays, spec, picked):
    """The plain form over the pairs of a choice."""
    query, key, value, gates, key_weights, value_weights = arrays
    (_, length, heads, width), groups = query.shape, key.shape[2]
    places = np.arange(length)

    def summarize(x, weights):
        starts = range(0, length - spec.length + 1, spec.stride)
        return jnp.stack([jnp.sum(x[:, s : s + spec.length] * weights, axis=1) for s in starts], 1)

    def softmax_over(key, value, allowed):
        key, value = (jnp.repeat(x, heads // groups, axis=2) for x in (key, value))
        logits = jnp.einsum('bthk,bshk->bhts', query, key) * width**-0.5
        weights = jax.nn.softmax(jnp.where(allowed, logits, -1e30), axis=-1) * allowed
        return jnp.einsum('bhts,bshk->bthk', weights, value)

    causal = places[:, None] >= places
    chunks = picked[:, :, places // spec.every]  # [B, G, T, n]
    blocks = jnp.any(chunks[..., None] == places // spec.size, axis=3) & causal
    keys, values = summarize(key, key_weights), summarize(value, value_weights)
    whole = np.arange(keys.shape[1]) * spec.stride + spec.length - 1 <= places[:, None]
    branches = (
        softmax_over(keys, values, whole),
        softmax_over(key, value, jnp.repeat(blocks, heads // groups, axis=1)),
        softmax_over(key, value, causal & (places[:, None] - places < spec.window)),
    )
    return sum(x * gates[..., i, None] for i, x in enumerate(branches))


@pytest.mark.slow
@pytest.mark.parametrize('spec', [SPECS[0], SPECS[2]], ids=str)
def test_gradients_are_those_of_the_plain_form_with_the_same_choice(spec):
    """Of all arguments: queries, keys, values, gates and the weights of summaries."""
    arrays = inputs(spec)
    query, key, _, _, weights, _ = arrays
    picked = nsa.choose(
        query[:, :: spec.every],
        nsa.summarize(key, weights, spec.stride),
        spec,
        jnp.arange(0, query.shape[1], spec.every)[None],
    )

    def gradients(function):
        cotangent = inputs(spec, seed=1)[0]
        return jax.jit(jax.grad(lambda arrays: jnp.vdot(function(arrays), cotangent)))(arrays)

    got = gradients(lambda arrays: run(arrays, spec))
    want = gradients(lambda arrays: dense(arrays, spec, picked))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(b).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('spec', [SPECS[0], SPECS[2]], ids=str)
def test_nothing_depends_on_what_comes_later(spec):
    """No bit of an output, with gradients to later tokens that are exactly zero."""
    arrays, later = inputs(spec, batch=1), inputs(spec, batch=1, seed=1)
    forward = jax.jit(lambda *arrays: run(arrays, spec))
    want = forward(*arrays)
    gradient = jax.jit(
        jax.grad(lambda arrays, t: jnp.sum(jnp.take(run(arrays, spec), t, axis=1) ** 2))
    )
    for t in (0, 3, 5, 15, 16, 35):
        changed = [
            np.concatenate([a[:, : t + 1], 9 * b[:, t + 1 :]], axis=1)
            for a, b in zip(arrays[:4], later[:4], strict=True)
        ]
        got = forward(*changed, *arrays[4:])
        np.testing.assert_array_equal(got[:, : t + 1], want[:, : t + 1])
        gradients = gradient(arrays, t)
        for grad in gradients[:4]:
            assert (grad[:, t + 1 :] == 0).all()
        assert np.abs(gradients[2][:, t]).max() > 0


@pytest.mark.slow
def test_documents_do_not_touch_each_other():
    """No bit of an output depends on other documents; from a whole block on, they are as alone."""
    spec = SPECS[0]
    arrays, others = inputs(spec), inputs(spec, seed=1)
    forward = jax.jit(lambda *arrays: run(arrays, spec, segments=SEGMENTS))
    want = np.asarray(forward(*arrays))
    for segment in (1, 2, 3):
        own = np.equal(SEGMENTS, segment)
        mixed = [
            np.where(own[..., None, None], a, 5 * b)
            for a, b in zip(arrays[:4], others[:4], strict=True)
        ]
        got = np.asarray(forward(*mixed, *arrays[4:]))
        np.testing.assert_array_equal(got[own], want[own])
    # The second document of the second row begins at 8.
    alone = run([*(x[1:, 8:] for x in arrays[:4]), *arrays[4:]], spec)
    np.testing.assert_allclose(want[1, 8:], alone[0], atol=2e-6)


@pytest.mark.parametrize('length', [1, 8, 31])
def test_what_fills_a_row_up_changes_nothing(length):
    spec = SPECS[0]
    arrays = inputs(spec)
    cut = [*(x[:, :length] for x in arrays[:4]), *arrays[4:]]
    got = jax.jit(lambda *arrays: run(arrays, spec))(*cut)
    np.testing.assert_allclose(got, oracle(arrays, spec)[:, :length], atol=5e-6)


def test_of_blocks_counts_shared_strides():
    """A summary of 4 tokens, one every 2: the one that begins at 2 is half in block 0, half in block 1."""
    weights = np.array([1.0, 10.0, 100.0, 1000.0, 0.0])
    got = nsa.of_blocks(weights, NSA(3, 4, 1, 4, 2))
    np.testing.assert_array_equal(got, [2 * 1 + 10, 10 + 2 * 100 + 1000, 1000])


def temporary(length):
    """Bytes of temporary memory of a gradient."""
    spec = NSA(4, 64, 128, 32, 16)
    shapes = jax.eval_shape(
        lambda: [jnp.asarray(x) for x in inputs(spec, length, batch=1, width=16)]
    )
    gradient = jax.jit(jax.grad(lambda arrays: jnp.sum(run(arrays, spec) ** 2)))
    return gradient.lower(shapes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_follows_the_length():
    half, whole = temporary(4096), temporary(8192)
    assert whole < 2.2 * half
    assert whole < 8192**2  # a byte for each pair


@specs
def test_text_and_back(spec):
    assert parse(str(spec)) == spec
    assert parse('nsa') == NSA(16, 64, 512, 32, 16, 64) == parse('nsa(window=512)')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('nsa(2)', 'blocks must be an integer of at least 3'),
        ('nsa(stride=24)', 'stride must divide length'),
        ('nsa(size=24)', 'stride must divide size'),
        ('nsa(every=7)', 'every must divide size'),
        ('~nsa', 'it stands alone'),
    ],
)
def test_bad_numbers(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)
