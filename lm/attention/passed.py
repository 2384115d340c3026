"""Linear attention over rows whose tokens are split over the mesh's `sequence` axis.

A state is passed on from shard to shard: each device finds what its tokens add to a state and what they
leave of an earlier one; all devices gather that, which is small; and each works out the state that its own
tokens begin with (as LASP-2: Sun et al. 2025, https://arxiv.org/abs/2502.07563). So the shards need not
wait for each other, at the price of computing states twice.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm.attention import linear
from lm.attention.linear import GatedDelta, GatedLinear, Performer, State
from lm.attention.sharded import AXIS, divides
from lm.mesh import ROWS

# (*arrays, segments=, state=) -> (out, state)
Run = Callable[..., tuple[jax.Array, State]]


def attend(run: Run, kind: Any, *arrays: jax.Array, segments: jax.Array | None) -> jax.Array:
    """Returns `run(*arrays, segments=segments)[0]`, over the mesh in context.

    Args:
        run: one of the three functions of `lm.attention.linear`, without its kind.
        kind: what it computes; causal.
        arrays: query, key, value, and what else it takes, `[B, T, heads, ...]`. The `sequence` axis
            divides T.
        segments: int32 `[B, T]`, or None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape.get(AXIS, 1)
    if shards == 1 or not kind.is_causal or not divides(*arrays[:2]):
        return run(*arrays, segments=segments)[0]
    heads = P(ROWS, AXIS, 'tensor')
    specs = (heads,) * len(arrays), None if segments is None else P(ROWS, AXIS)
    local = functools.partial(_local, run=run, kind=kind, shards=shards)
    return jax.shard_map(local, in_specs=specs, out_specs=heads, check_vma=False)(arrays, segments)


def _local(arrays, segments, *, run, kind, shards):
    _, key, value, *_ = arrays
    empty = linear.empty_for(kind, key, value)
    ends = jnp.ones((key.shape[0], 2), jnp.int32) if segments is None else _ends(segments)
    added = run(*arrays, segments=segments)[1]
    summary = added, _left(run, kind, arrays, segments), _is_one(segments, key.shape[0]), ends
    gathered = jax.lax.all_gather(summary, AXIS)
    number = jax.lax.axis_index(AXIS)
    state, owner = empty, jnp.zeros(key.shape[0], jnp.int32)
    before, before_owner = state, owner
    for shard in range(shards - 1):
        added, left, is_one, found = jax.tree.map(lambda x, i=shard: x[i], gathered)
        first, last = found[:, 0], found[:, 1]
        # An earlier state lives on if its segment goes on here, or there is nothing here at all.
        lives = is_one & ((first == owner) | (last == 0))
        state = _combined(kind, _where(lives, state, empty), added, left)
        owner = jnp.where(last > 0, last, owner)
        before, before_owner = jax.tree.map(
            functools.partial(jnp.where, number == shard + 1),
            (state, owner),
            (before, before_owner),
        )
    return run(*arrays, segments=segments, state=_where(before_owner == ends[:, 0], before, empty))[
        0
    ]


def _left(
    run: Run, kind: Any, arrays: tuple[jax.Array, ...], segments: jax.Array | None
) -> jax.Array:
    """Returns what becomes of an earlier state: a factor for each channel `[B, G, K, 1]`, or a matrix."""
    query, key, value, *gates = arrays
    batch, _, groups, width = key.shape
    match kind:
        case GatedLinear():
            (log_decay,) = gates
            if segments is not None:
                log_decay = jnp.where(segments[:, :, None, None] > 0, log_decay, 0)
            return jnp.exp(jnp.sum(log_decay.astype(jnp.float32), axis=1))[..., None]
        case GatedDelta():  # The rule is linear in the state: that of the unit matrix tells all.
            nothing = jnp.zeros((*value.shape[:3], width), value.dtype)
            unit = jnp.broadcast_to(jnp.eye(width), (batch, groups, width, width))
            return run(query, key, nothing, *gates, segments=segments, state={'state': unit})[1][
                'state'
            ]
    return jnp.ones((batch, groups, 1, 1))


def _combined(kind: Any, state: State, added: State, left: jax.Array) -> State:
    """Returns the state after a shard."""
    if isinstance(kind, Performer):
        top = jnp.maximum(state['top'], added['top'])
        sums = sum(x['sums'] * jnp.exp(x['top'] - top)[..., None] for x in (state, added))
        return {'sums': sums, 'top': top}
    product = jnp.matmul if isinstance(kind, GatedDelta) else jnp.multiply
    return {name: product(left, x) + added[name] for name, x in state.items()}


def _where(flags: jax.Array, a: State, b: State) -> State:
    """Returns the states of rows `[B]` of which it is true from `a`, and the others from `b`."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(flags.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, a, b)


def _ends(segments: jax.Array) -> jax.Array:
    """Returns int32 `[B, 2]`, the segments of the first and the last token that is no padding; 0: none."""
    real = segments > 0
    first = jnp.argmax(real, axis=1)
    last = segments.shape[1] - 1 - jnp.argmax(jnp.flip(real, axis=1), axis=1)
    return jnp.take_along_axis(segments, jnp.stack([first, last], axis=1), axis=1)


def _is_one(segments: jax.Array | None, batch: int) -> jax.Array:
    """Returns bool `[B]`: are all tokens of one segment?"""
    return jnp.ones(batch, bool) if segments is None else linear.run_numbers(segments)[:, -1] == 0
