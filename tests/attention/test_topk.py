"""Top-k blocks against an oracle that takes one query at a time, and what holds for any choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import attend as attend_by_mask
from lm.attention import topk
from lm.attention.block import Extras
from lm.attention.expression import parse
from lm.attention.masks import causal
from lm.attention.topk import TopK
from lm.errors import InputError

SEGMENTS = np.array([[1] * 9 + [2] * 13 + [3] * 12 + [0] * 3, [1] * 8 + [2] * 29])
SPECS = [TopK(3, 4), TopK(2, 8), TopK(3, 4, 1), TopK(3, 8, 2)]
specs = pytest.mark.parametrize('spec', SPECS, ids=str)
EXTRAS = Extras(softcap=2.0, slopes=(0.5, 0.25, 0.125, 0.0625))


def inputs(length=37, batch=2, heads=4, groups=2, width=6, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(length, heads), (length, groups), (length, groups)]
    return [rng.normal(size=(batch, *s, width)).astype(np.float32) for s in shapes]


def seen_by(query, key, spec, b, t, g, segments):
    """The places that a query sees, from the definition, for row b and head g of keys."""
    same = np.ones(len(key[b]), bool) if segments is None else segments[b] == segments[b, t]
    first = t // spec.every * spec.every
    repeats = query.shape[2] // key.shape[2]
    pooled = query[b, first, g * repeats : (g + 1) * repeats].mean(axis=0)
    scores = {}
    for block in range(first // spec.size):
        places = np.arange(block * spec.size, (block + 1) * spec.size)
        if segments is not None:
            places = places[segments[b, places] == segments[b, first]]
        if len(places):
            scores[block] = key[b, places, g].mean(axis=0) @ pooled
    best = sorted(scores, key=scores.get, reverse=True)[: spec.blocks - 1]
    places = np.arange(t + 1)
    return places[np.isin(places // spec.size, [*best, t // spec.size]) & same[: t + 1]]


def oracle(query, key, value, spec, segments=None, extras=None):
    """One query and head at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros_like(query)
    for b, t, h in np.ndindex(query.shape[:3]):
        g = h * key.shape[2] // query.shape[2]
        seen = seen_by(query, key, spec, b, t, g, segments)
        logits = key[b, seen, g] @ query[b, t, h] / np.sqrt(query.shape[-1])
        if extras is not None:
            logits = extras.softcap * np.tanh(logits / extras.softcap)
            logits -= extras.slopes[h] * (t - seen)
        weights = np.exp(logits - logits.max())
        out[b, t, h] = weights / weights.sum() @ value[b, seen, g]
    return out


def run(arrays, spec, segments=None, **options):
    attend = functools.partial(topk.attend, spec=spec, segments=segments, **options)
    return jax.jit(attend)(*arrays)


@pytest.mark.first_quick
@specs
@pytest.mark.parametrize(('groups', 'segments'), [(4, None), (1, SEGMENTS), (2, SEGMENTS)])
def test_equals_the_oracle(spec, groups, segments):
    arrays = inputs(groups=groups)
    got = run(arrays, spec, segments)
    np.testing.assert_allclose(got, oracle(*arrays, spec, segments), atol=2e-6)


def test_softcap_and_alibi():
    arrays = inputs()
    got = run(arrays, SPECS[0], SEGMENTS, extras=EXTRAS)
    np.testing.assert_allclose(got, oracle(*arrays, SPECS[0], SEGMENTS, EXTRAS), atol=2e-6)


def dense(query, key, value, picked, spec, segments=None):
    """The plain form over the pairs of a choice."""
    length, repeats = query.shape[1], query.shape[2] // key.shape[2]
    blocks = jnp.arange(length) // spec.size
    chunks = picked[:, :, jnp.arange(length) // spec.every]  # [B, G, T, n]
    allowed = jnp.any(chunks[..., None] == blocks, axis=3)  # [B, G, T, S]
    allowed &= jnp.tril(jnp.ones((length, length), bool))
    if segments is not None:
        allowed &= (segments[:, :, None] == segments[:, None])[:, None]
    allowed = jnp.repeat(allowed, repeats, axis=1)
    key, value = (jnp.repeat(x, repeats, axis=2) for x in (key, value))
    logits = jnp.einsum('bthk,bshk->bhts', query, key) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
    return jnp.einsum('bhts,bshk->bthk', weights, value)


@pytest.mark.first_quick
@pytest.mark.parametrize(
    ('spec', 'segments'),
    [(SPECS[0], SEGMENTS), (SPECS[1], None), (SPECS[2], None), (SPECS[3], SEGMENTS)],
)
def test_gradients_are_those_of_the_plain_form_with_the_same_choice(spec, segments):
    arrays = inputs()
    picked = topk.choose(arrays[0], topk.means(arrays[1], spec, segments), spec, segments=segments)

    def gradients(function):
        cotangent = inputs(seed=1)[0]
        loss = lambda *arrays: jnp.vdot(function(*arrays), cotangent)  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)

    got = gradients(lambda *arrays: topk.attend(*arrays, spec, segments=segments))
    want = gradients(lambda *arrays: dense(*arrays, picked, spec, segments))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('spec', [SPECS[0], SPECS[3]], ids=str)
def test_nothing_depends_on_what_comes_later(spec):
    """No bit of an output, with gradients to later tokens that are exactly zero."""
    arrays = inputs(batch=1)
    forward = jax.jit(lambda *arrays: topk.attend(*arrays, spec))
    want = forward(*arrays)
    gradient = jax.jit(
        jax.grad(lambda arrays, t: jnp.sum(jnp.take(topk.attend(*arrays, spec), t, axis=1) ** 2))
    )
    for t in (0, 3, 5, 15, 16, 35):
        later = inputs(batch=1, seed=1)
        changed = [
            np.concatenate([a[:, : t + 1], 9 * b[:, t + 1 :]], axis=1)
            for a, b in zip(arrays, later, strict=True)
        ]
        np.testing.assert_array_equal(forward(*changed)[:, : t + 1], want[:, : t + 1])
        gradients = gradient(arrays, t)
        for grad in gradients:
            assert (grad[:, t + 1 :] == 0).all()
        assert np.abs(gradients[2][:, t]).max() > 0


@pytest.mark.parametrize('spec', [SPECS[0], SPECS[3]], ids=str)
def test_documents_do_not_touch_each_other(spec):
    """No bit of an output depends on other documents; from a whole block on, they are as alone."""
    arrays, others = inputs(), inputs(seed=1)
    forward = jax.jit(lambda *arrays: topk.attend(*arrays, spec, segments=SEGMENTS))
    want = forward(*arrays)
    for segment in (1, 2, 3):
        own = segment == SEGMENTS
        mixed = [
            np.where(own[..., None, None], a, 5 * b) for a, b in zip(arrays, others, strict=True)
        ]
        got = forward(*mixed)
        np.testing.assert_array_equal(np.asarray(got)[own], np.asarray(want)[own])
    # The second document of the second row begins at 8.
    alone = run([x[1:, 8:] for x in arrays], spec)
    np.testing.assert_allclose(want[1, 8:], alone[0], atol=2e-6)


def test_all_blocks_are_causal_attention():
    arrays = inputs()
    got = run(arrays, TopK(10, 4))
    want = attend_by_mask(*arrays, causal, implementation='xla')
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize('length', [1, 8, 31])
def test_what_fills_a_row_up_changes_nothing(length):
    spec = TopK(2, 4)
    arrays = inputs()
    got = run([x[:, :length] for x in arrays], spec)
    np.testing.assert_allclose(got, oracle(*arrays, spec)[:, :length], atol=2e-6)


def test_the_choice_finds_what_matches():
    """A key of block 2 that is like the query of place 12 is found, and blocks 0, 1 are left."""
    query, key = np.zeros((1, 16, 1, 2), np.float32), np.zeros((1, 16, 1, 2), np.float32)
    query[0, 12, 0, 0], key[0, 9, 0, 0] = 1, 5
    spec = TopK(2, 4)
    np.testing.assert_array_equal(
        topk.choose(query, topk.means(key, spec), spec)[0, 0], [[0, -1], [1, 0], [2, 0], [3, 2]]
    )


def test_bfloat16_in_and_out():
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in inputs()]
    got = run(arrays, SPECS[0])
    assert got.dtype == jnp.bfloat16
    want = oracle(*(np.asarray(x, np.float32) for x in arrays), SPECS[0])
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=0.03)


def temporary(length):
    """Bytes of temporary memory of a gradient."""
    shape = jax.ShapeDtypeStruct((1, length, 4, 16), jnp.float32)
    spec = TopK(4, 64)
    gradient = jax.grad(lambda *a: jnp.sum(topk.attend(*a, spec) ** 2), argnums=(0, 1, 2))
    return jax.jit(gradient).lower(*[shape] * 3).compile().memory_analysis().temp_size_in_bytes


def test_memory_follows_the_length():
    half, whole = temporary(4096), temporary(8192)
    assert whole < 2.2 * half
    assert whole < 8192**2  # a byte for each pair


@specs
def test_text_and_back(spec):
    assert parse(str(spec)) == spec
    assert parse('topk') == TopK(8, 64, 64) == parse('topk(size=64)')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('topk(0)', 'blocks must be an integer of at least 1'),
        ('topk(2, 8, 3)', 'every must divide size'),
        ('topk(2, 8, 4, 4)', 'write topk'),
        ('causal & topk(4)', 'it stands alone'),
    ],
)
def test_bad_numbers(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)
