"""Linear attention with its tokens split over devices against the same on one, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm import mesh
from lm.attention import linear, passed
from lm.attention.linear import GatedDelta, GatedLinear, Linear, Performer

T = 32
KINDS = {
    'linear': (Linear(), functools.partial(linear.linear, kind=Linear(), chunk=4)),
    'performer': (Performer(8), functools.partial(linear.linear, kind=Performer(8), chunk=4)),
    'gated_linear': (GatedLinear(), functools.partial(linear.gated_linear, chunk=4)),
    'gated_delta': (GatedDelta(), functools.partial(linear.gated_delta, chunk=4)),
    'bidirectional': (Linear(0), functools.partial(linear.linear, kind=Linear(0), chunk=4)),
}
SEGMENTS = {
    'one document': None,
    # Documents that end at a shard's end, go on over several, and padding that fills more than one.
    'packed': np.array(
        [
            [1] * 8 + [2] * 3 + [3] * 18 + [0] * 3,
            [1] * 20 + [2] * 12,
            [4] * 8 + [5] * 12 + [0] * 12,
            [0] * 9 + [1] * 14 + [2] * 9,
        ]
    ),
}


@functools.cache
def arrays(kind):
    rng = np.random.default_rng(0)
    query, key, value = (
        jnp.asarray(rng.normal(size=(4, T, heads, 4)), jnp.float32) for heads in (4, 2, 2)
    )
    if kind == 'gated_linear':
        return query, key, value, jnp.asarray(-rng.uniform(0, 0.5, (4, T, 2, 4)), jnp.float32)
    if kind == 'gated_delta':
        key /= jnp.linalg.norm(key, axis=-1, keepdims=True)
        gates = -rng.uniform(0, 0.5, (4, T, 2)), rng.uniform(0, 1, (4, T, 2))
        return query, key, value, *(jnp.asarray(g, jnp.float32) for g in gates)
    return query, key, value


@functools.cache
def pulled(name, packed, sequence):
    kind, run = KINDS[name]
    segments = SEGMENTS[packed]
    real = jnp.ones((4, T, 1, 1)) if segments is None else (segments > 0)[:, :, None, None]

    def loss(*inputs):
        out = passed.attend(
            run, kind, *inputs, segments=None if segments is None else jnp.asarray(segments)
        )
        out = jnp.where(real, out, 0)  # What comes out for padding has no meaning.
        return jnp.sum(jnp.sin(out)), out

    inputs = arrays(name)
    grad = jax.jit(jax.grad(loss, tuple(range(len(inputs))), has_aux=True))
    if sequence == 1:
        return grad(*inputs)
    devices = mesh.make(mesh.sizes(1, 4 // sequence, 2, sequence))
    with jax.set_mesh(devices):
        sharding = NamedSharding(devices, P(mesh.ROWS, 'sequence', 'tensor'))
        return grad(*(jax.device_put(x, sharding) for x in inputs))


@pytest.mark.first_quick
@pytest.mark.parametrize('sequence', [2, 4])
@pytest.mark.parametrize('packed', SEGMENTS)
@pytest.mark.parametrize('name', KINDS)
def test_split_positions_change_nothing(name, packed, sequence):
    (want, want_out), (got, got_out) = (pulled(name, packed, n) for n in (1, sequence))
    assert np.abs(want_out).max() > 0.1
    np.testing.assert_allclose(got_out, want_out, atol=2e-6)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_states_move_and_tokens_do_not():
    kind, run = KINDS['gated_linear']
    inputs = arrays('gated_linear')
    devices = mesh.make(mesh.sizes(1, 2, 1, 4))
    with jax.set_mesh(devices):
        sharding = NamedSharding(devices, P(mesh.ROWS, 'sequence', 'tensor'))
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in inputs]
        attend = jax.jit(functools.partial(passed.attend, run, kind, segments=None))
        text = attend.lower(*shapes).compile().as_text()
    assert 'all-gather' in text
    assert f'[4,{T}' not in text  # no whole rows
