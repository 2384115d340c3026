"""Attention over rows whose tokens are split over the mesh's `sequence` axis.

Three ways, chosen by the mask:

- `halo`: a causal window that reaches no further than the shard before: each device gets the end of it.
- `ring`: causal attention over everything. Keys and values go around (Liu et al. 2023,
  https://arxiv.org/abs/2310.01889). Device i of n works on the i-th and the i-th last of 2n pieces, so that
  all have as much to do (the zig-zag order of Zhu's ring-flash-attention and of Llama 3's training).
- `gather`: any other mask. Keys and values are gathered, and each device has the table of its own queries.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm.attention import block
from lm.attention.block import PLAIN, Extras, Form, Tokens
from lm.attention.masks import Causal, Full, Mask
from lm.mesh import ROWS

AXIS = 'sequence'


def divides(query: jax.Array, key: jax.Array) -> bool:
    """Whether the mesh in context divides rows, positions and heads, `[B, T, H, K]` and `[B, S, G, K]`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return True
    rows = math.prod(mesh.shape.get(axis, 1) for axis in ROWS)
    axes = (rows, mesh.shape.get(AXIS, 1), mesh.shape.get('tensor', 1))
    return not any(n % size for x in (query, key) for n, size in zip(x.shape, axes, strict=False))


def way(mask: Mask, length: int, shards: int, extras: Extras) -> str:
    """Returns halo | ring | gather, for rows of `length` tokens over so many devices."""
    local = length // shards
    reach = mask.reach()
    if (
        mask.is_causal
        and mask.is_shift_invariant
        and reach.recent - 1 <= local
        and not reach.pinned
    ):
        return 'halo'
    if mask == Causal() and local % 2 == 0 and extras == PLAIN:
        return 'ring'
    return 'gather'


def attend(
    form: Form,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *,
    segments: tuple[jax.Array, jax.Array] | None = None,
    in_prefix: jax.Array | None = None,
    extras: Extras = PLAIN,
) -> jax.Array:
    """Returns `[B, T, H, K]`; the arguments are those of `block.attend`, over the mesh in context.

    T is as long as S, and the `sequence` axis divides it. Rows are laid over `data` and `fsdp`, heads over
    `tensor`.
    """
    shards = jax.sharding.get_abstract_mesh().shape[AXIS]
    run = {'halo': _halo, 'ring': _ring, 'gather': _gather}[
        way(mask, query.shape[1], shards, extras)
    ]
    tokens = Tokens(*(segments or (None, None)), in_prefix)
    local = functools.partial(run, form=form, mask=mask, extras=extras, shards=shards)
    # Slopes are numbers of the program, the same on all devices: with them, so are the heads.
    heads = P(ROWS, AXIS, None if extras.slopes else 'tensor', None)
    places = P(ROWS, AXIS)
    specs = jax.tree.map(lambda _: places, tokens)
    return jax.shard_map(
        local, in_specs=(heads, heads, heads, specs), out_specs=heads, check_vma=False
    )(query, key, value, tokens)


# --- the end of the shard before ------------------------------------------------------------------


def _halo(query, key, value, tokens, *, form, mask, extras, shards):
    width = int(mask.reach().recent) - 1
    one = jnp.ones(query.shape[:2], jnp.int32)
    q_segments = one if tokens.q_segments is None else tokens.q_segments
    k_segments = one if tokens.k_segments is None else tokens.k_segments
    forward = [(i, i + 1) for i in range(shards - 1)]

    def extended(x: jax.Array, missing: int = 0) -> jax.Array:
        """Returns `[B, width + T, ...]`. The first shard has nothing before it."""
        if not width:
            return x
        before = jax.lax.ppermute(x[:, -width:], AXIS, forward)
        if missing:
            before = jnp.where(jax.lax.axis_index(AXIS) == 0, missing, before)
        return jnp.concatenate([before, x], axis=1)

    return block.attend(
        form,
        query,
        extended(key),
        extended(value),
        mask,
        segments=(q_segments, extended(k_segments, missing=-1)),
        in_prefix=None if tokens.in_prefix is None else extended(tokens.in_prefix),
        extras=extras,
        start=width,
    )


# --- all keys on all devices ----------------------------------------------------------------------


def _gather(query, key, value, tokens, *, form, mask, extras, shards):
    def whole(x: jax.Array | None) -> jax.Array | None:
        return None if x is None else jax.lax.all_gather(x, AXIS, axis=1, tiled=True)

    keys, values, in_prefix = whole(key), whole(value), whole(tokens.in_prefix)
    segments = None if tokens.q_segments is None else (tokens.q_segments, whole(tokens.k_segments))

    def shard(number: int, *arrays):
        query, keys, values, segments, in_prefix = arrays
        return block.attend(
            form,
            query,
            keys,
            values,
            mask,
            segments=segments,
            in_prefix=in_prefix,
            extras=extras,
            start=number * query.shape[1],
        )

    branches = [functools.partial(shard, number) for number in range(shards)]
    return jax.lax.switch(
        jax.lax.axis_index(AXIS), branches, query, keys, values, segments, in_prefix
    )


# --- keys that go around --------------------------------------------------------------------------


def _ring(query, key, value, tokens, *, form, mask, extras, shards):
    del mask, extras  # Causal, and none.
    groups = key.shape[2]
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)  # [B, G, S, K]
    query = block.split_heads(query, groups)
    return block.join_heads(_go_around(query, key, value, tokens, form, shards))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _go_around(query, key, value, tokens, form, shards):
    return _ring_forward(query, key, value, tokens, form, shards)[0]


def _ring_forward(query, key, value, tokens, form, shards):
    query, key, value, tokens = _to_zigzag(query, key, value, tokens, shards)
    first = jax.lax.axis_index(AXIS)
    q_half, k_half = query.shape[3] // 2, key.shape[2] // 2

    def seen(query, key, value, tokens, mask):
        return form.forward(query, key, value, tokens, mask, PLAIN)

    def from_before(key, value, k_segments):
        """All queries, and the first piece of a device before this one."""
        segments = Tokens(tokens.q_segments, _cut(k_segments, slice(k_half)))
        return seen(query, key[:, :, :k_half], value[:, :, :k_half], segments, Full())

    def from_after(key, value, k_segments):
        """The queries of the second piece, and both pieces of a device after this one."""
        segments = Tokens(_cut(tokens.q_segments, slice(q_half, None)), k_segments)
        out, log_sum = seen(query[:, :, :, q_half:], key, value, segments, Full())
        nothing = jnp.full((*query.shape[:3], q_half, 1), block.FORBIDDEN / 2, jnp.float32)
        return _behind(out), jnp.concatenate([nothing, log_sum], axis=3)

    def step(carry, number):
        out, log_sum, moving = carry
        moving = _next(moving, shards)
        # The keys are now those of `number` devices before, around the ring.
        new, new_log_sum = jax.lax.cond(number <= first, from_before, from_after, *moving)
        return (*block.merge([out, new], [log_sum, new_log_sum], out.shape), moving), None

    # The two pieces of a device, one after the other, see each other as if they touched.
    out, log_sum = seen(query, key, value, tokens, Causal())
    carry = out, log_sum, (key, value, tokens.k_segments)
    (out, log_sum, _), _ = jax.lax.scan(step, carry, jnp.arange(1, shards))
    out = out.astype(query.dtype)
    residuals = query, key, value, tokens, out, log_sum
    return _zigzag(out, 3, shards, back=True), residuals


def _ring_backward(form, shards, residuals, gradient):
    query, key, value, tokens, out, log_sum = residuals
    gradient = _zigzag(gradient, 3, shards)
    along = block.along_rows(gradient, out)
    first = jax.lax.axis_index(AXIS)
    q_half, k_half = query.shape[3] // 2, key.shape[2] // 2
    rows = query, gradient, along, log_sum

    def pulled(rows, key, value, tokens, mask):
        query, *others = rows
        return form.backward(query, key, value, tokens, *others, mask, PLAIN)

    def from_before(key, value, k_segments):
        segments = Tokens(tokens.q_segments, _cut(k_segments, slice(k_half)))
        d_query, *others = pulled(rows, key[:, :, :k_half], value[:, :, :k_half], segments, Full())
        return d_query, *(_filled(x, 2, behind=False) for x in others)

    def from_after(key, value, k_segments):
        segments = Tokens(_cut(tokens.q_segments, slice(q_half, None)), k_segments)
        half = tuple(x[:, :, :, q_half:] for x in rows)
        d_query, *others = pulled(half, key, value, segments, Full())
        return _behind(d_query), *others

    def step(carry, number):
        d_query, moving, sums = carry
        moving, sums = _next((moving, sums), shards)
        new, *others = jax.lax.cond(number <= first, from_before, from_after, *moving)
        return (
            d_query + new,
            moving,
            tuple(a + b for a, b in zip(sums, others, strict=True)),
        ), None

    d_query, *sums = pulled(rows, key, value, tokens, Causal())
    carry = d_query, (key, value, tokens.k_segments), tuple(sums)
    (d_query, _, sums), _ = jax.lax.scan(step, carry, jnp.arange(1, shards))
    d_key, d_value = _next(sums, shards)  # Home.
    grads = ((d_query, query, 3), (d_key, key, 2), (d_value, value, 2))
    return *(_zigzag(g.astype(x.dtype), axis, shards, back=True) for g, x, axis in grads), None


_go_around.defvjp(_ring_forward, _ring_backward)


def _next(arrays, shards: int):
    """Returns the arrays of the device before, around the ring."""
    around = [(i, (i + 1) % shards) for i in range(shards)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, around), arrays)


def _cut(x: jax.Array | None, part: slice) -> jax.Array | None:
    return None if x is None else x[:, part]


def _behind(x: jax.Array) -> jax.Array:
    """Returns `[B, G, R, T, K]` of the half of the queries that comes second: zeros before it."""
    return _filled(x, 3, behind=True)


def _filled(x: jax.Array, axis: int, behind: bool) -> jax.Array:
    parts = [jnp.zeros_like(x), x] if behind else [x, jnp.zeros_like(x)]
    return jnp.concatenate(parts, axis=axis)


def _to_zigzag(query, key, value, tokens, shards):
    segments = (None if x is None else _zigzag(x, 1, shards) for x in tokens[:2])
    return (
        _zigzag(query, 3, shards),
        _zigzag(key, 2, shards),
        _zigzag(value, 2, shards),
        Tokens(*segments),
    )


def _zigzag(x: jax.Array, axis: int, shards: int, back: bool = False) -> jax.Array:
    """Returns the i-th and the i-th last of 2n pieces, of the pieces 2i and 2i + 1; or the reverse."""
    homes = [i if i < shards else 2 * shards - 1 - i for i in range(2 * shards)]
    moves = [[(i, homes[2 * i + j]) for i in range(shards)] for j in range(2)]
    even = jax.lax.axis_index(AXIS) % 2 == 0
    first, second = jnp.split(x, 2, axis=axis)
    if back:
        # Of the two pieces here the one with an even number is the first on an even device.
        pieces = jnp.where(even, first, second), jnp.where(even, second, first)
        moves = [[(b, a) for a, b in move] for move in moves]
        first, second = (jax.lax.ppermute(p, AXIS, m) for p, m in zip(pieces, moves, strict=True))
        return jnp.concatenate([first, second], axis=axis)
    pieces = [jax.lax.ppermute(p, AXIS, m) for p, m in zip((first, second), moves, strict=True)]
    return jnp.concatenate(
        [jnp.where(even, *pieces), jnp.where(even, *reversed(pieces))], axis=axis
    )
