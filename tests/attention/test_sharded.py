"""Tokens split over devices against the same on one, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm import mesh
from lm.attention import attend, masks
from lm.attention.block import PLAIN, Extras
from lm.attention.masks import causal, full, window
from lm.attention.sharded import way

T = 192
SEGMENTS = np.repeat([[1, 2, 0, 0], [1, 1, 2, 3]] * 2, T // 4, axis=1)
CASES = {
    'causal': (causal, 'ring'),
    'causal & window(20)': (causal & window(20), 'halo'),
    'causal & window(1)': (causal & window(1), 'halo'),
    'causal & window(60)': (
        causal & window(60),
        None,
    ),  # Reaches over a shard of 48 tokens, not of 96.
    'full': (full, 'gather'),
    'window': (window(20), 'gather'),
    'strided': (causal & (window(20) | masks.strided(16)), 'gather'),
    'odd stride': (causal & masks.strided(7), 'gather'),
    'fixed': (masks.sparse_transformer_fixed(16, 2), 'gather'),
    'bigbird': (causal & masks.bigbird(16, 8, 1), 'gather'),
    'prefix': (causal | masks.prefix, 'gather'),
}


@functools.cache
def pulled(case, packed, sequence, slopes=None):
    mask, _ = CASES[case]
    arrays = [
        jax.random.normal(jax.random.key(i), (4, T, heads, 8))
        for i, heads in enumerate((4, 2, 2, 4))
    ]
    segments = (jnp.asarray(SEGMENTS),) * 2 if packed else None
    in_prefix = jnp.arange(T) % (T // 4) < 20
    in_prefix = jnp.broadcast_to(in_prefix, (4, T)) if case == 'prefix' else None

    def loss(query, key, value):
        out = attend(query, key, value, mask, segments=segments, in_prefix=in_prefix, slopes=slopes)
        return jnp.sum(arrays[3] * out), out

    grad = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    if sequence == 1:
        return grad(*arrays[:3])
    devices = mesh.make(mesh.sizes(1, 4 // sequence, 2, sequence))
    with jax.set_mesh(devices):
        sharding = NamedSharding(devices, P(mesh.ROWS, 'sequence', 'tensor', None))
        return grad(*(jax.device_put(x, sharding) for x in arrays[:3]))


@pytest.mark.first_quick
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('sequence', [2, 4])
@pytest.mark.parametrize('case', CASES)
def test_split_positions_change_nothing(case, sequence, packed):
    (want, want_out), (got, got_out) = (pulled(case, packed, n) for n in (1, sequence))
    np.testing.assert_allclose(got_out, want_out, atol=2e-6)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.first_quick
@pytest.mark.parametrize('case', ['causal', 'causal & window(20)'])
def test_distances_are_those_of_the_whole_row(case):
    slopes = (0.5, 0.25, 0.125, 0.1)
    (_, want), (_, got) = (pulled(case, False, n, slopes) for n in (1, 4))
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.slow
def test_what_the_mesh_cannot_divide_is_left_to_the_compiler():
    """One row, or heads that are fewer than the devices they would go to."""
    for batch, groups in ((1, 2), (4, 1)):
        arrays = [
            jax.random.normal(jax.random.key(i), (batch, 32, heads, 8))
            for i, heads in enumerate((4, groups, groups))
        ]
        want = attend(*arrays, causal)
        with jax.set_mesh(mesh.make(mesh.sizes(1, 2, 2, 2))):
            got = jax.jit(lambda *x: attend(*x, causal))(*arrays)
        np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize('case', CASES)
def test_ways(case):
    mask, expected = CASES[case]
    found = {way(mask, T, shards, PLAIN) for shards in (2, 4)}
    assert found == ({expected} if expected else {'halo', 'gather'})


def test_a_ring_needs_two_pieces_each_and_knows_no_distances():
    assert way(causal, 12, 4, PLAIN) == 'gather'
    assert way(causal, T, 4, Extras(slopes=(1.0,))) == 'gather'


@pytest.mark.parametrize(
    ('case', 'wanted', 'unwanted'),
    [
        ('causal', 'collective-permute', 'all-gather'),
        ('causal & window(20)', 'collective-permute', 'all-gather'),
        ('full', 'all-gather', 'collective-permute'),
    ],
)
def test_what_moves(case, wanted, unwanted):
    array = jax.ShapeDtypeStruct((4, T, 4, 8), jnp.float32)
    devices = mesh.make(mesh.sizes(1, 2, 1, 4))
    with jax.set_mesh(devices):
        sharding = NamedSharding(devices, P(mesh.ROWS, 'sequence', 'tensor', None))
        run = jax.jit(
            lambda *arrays: attend(*arrays, CASES[case][0]),
            in_shardings=(sharding,) * 3,
            out_shardings=sharding,
        )
        text = run.lower(array, array, array).compile().as_text()
    assert wanted in text
    assert unwanted not in text
