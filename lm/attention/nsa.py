"""Native sparse attention (Yuan et al. 2025, https://arxiv.org/abs/2502.11089): three branches and gates.

Each query sees, by three softmaxes over the same keys and values:

- summaries, learned sums of `length` keys (and values), one every `stride` of them, once they are whole;
- the `blocks` blocks of `size` keys that matter most: its own, the one before, the first of its document,
  and those to whose summaries the first softmax gives most weight, summed over heads that share keys;
- the last `window` tokens.

Gates made of the layer's input weigh the three results, and all is trained together.

In the paper each query chooses blocks; here `every` consecutive ones share the choice of the first of
them, so that a step of the loop is a matrix product (see `topk.py`); with `every=1` it is the paper's. The
paper's summaries are those of a small network, and each branch has keys and values of its own; here they
are sums with a learned weight for each place, head and feature, that begin as means, and branches share
keys and values. Work is T^2 / stride for summaries, and T times `blocks * size + window` else.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lm.attention import block, chosen
from lm.attention.block import PLAIN, Extras
from lm.attention.choose import attend as attend_by_mask
from lm.attention.masks import Window, causal
from lm.attention.topk import check, in_blocks
from lm.errors import InputError

_QUERIES = 128  # Of a step of the loop over summaries.


@dataclasses.dataclass(frozen=True)
class NSA:
    """Three branches; the defaults are the paper's.

    Attributes:
        blocks: chosen ones, the own, the previous and the first included.
        size: tokens of a block.
        window: tokens, the own included.
        length: tokens of a summary.
        stride: tokens from one summary to the next; a divisor of `length` and of `size`.
        every: tokens that share a choice, a divisor of `size`; 0 is `size`.
    """

    blocks: int = 16
    size: int = 64
    window: int = 512
    length: int = 32
    stride: int = 16
    every: int = 0

    def __post_init__(self):
        least = {'blocks': 3, 'size': 1, 'window': 1, 'length': 1, 'stride': 1, 'every': 0}
        check(self, at_least=least)
        if not self.every:
            object.__setattr__(self, 'every', self.size)
        for part, whole in (('stride', 'length'), ('stride', 'size'), ('every', 'size')):
            if getattr(self, whole) % getattr(self, part):
                raise InputError(f'{self}: {part} must divide {whole}.')

    def __str__(self):
        return f'nsa({", ".join(str(getattr(self, f.name)) for f in dataclasses.fields(self))})'

    @property
    def is_causal(self) -> bool:
        """No token sees a later one, nor does a choice."""
        return True

    @property
    def may_pack(self) -> bool:
        """Where a document starts in a row moves the edges of its blocks, and no more."""
        return True


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    gates: jax.Array,
    weights: tuple[jax.Array, jax.Array],
    spec: NSA,
    *,
    segments: jax.Array | None = None,
    extras: Extras = PLAIN,
) -> jax.Array:
    """Returns `[B, T, H, K]`.

    Args:
        query: `[B, T, H, K]`.
        key: `[B, T, G, K]`.
        value: `[B, T, G, K]`.
        gates: `[B, T, H, 3]`, what the branches are multiplied with: summaries, blocks, window.
        weights: of summaries of keys and of values, float32 `[length, G, K]` each.
        spec: the sizes.
        segments: int32 `[B, T]`, of documents that lie one after the other. Tokens neither see nor choose
            by those of others. Summaries and blocks are laid in the row: a document that begins at a
            multiple of `size` has the result that it has alone.
        extras: of the logits of all branches. For ALiBi a summary is at its last token.
    """
    places = jnp.arange(query.shape[1], dtype=jnp.int32)[None]
    summaries = [summarize(x, w, spec.stride) for x, w in zip((key, value), weights, strict=True)]
    of_summaries = None if segments is None else summary_segments(segments, spec)
    first = attend_to_summaries(
        query, *summaries, spec, places, segments=(segments, of_summaries), extras=extras
    )
    picked = choose(
        query[:, :: spec.every],
        summaries[0],
        spec,
        places[:, :: spec.every],
        segments=segments,
        extras=extras,
    )
    both = None if segments is None else (segments, segments)
    second = chosen.attend(
        query,
        key,
        value,
        picked,
        size=spec.size,
        every=spec.every,
        segments=both,
        extras=extras,
    )
    mask = causal & Window(spec.window)
    third = attend_by_mask(query, key, value, mask, segments=both, **extras._asdict())
    return merge((first, second, third), gates)


def merge(branches: tuple[jax.Array, ...], gates: jax.Array) -> jax.Array:
    """Returns the sum of branches `[B, T, H, K]`, each times its gate of `[B, T, H, 3]`."""
    out = sum(x * gates[..., i, None] for i, x in enumerate(branches))
    return out.astype(branches[0].dtype)


def summarize(x: jax.Array, weights: jax.Array, stride: int) -> jax.Array:
    """Returns `[B, M, G, K]`: entry j sums what `[B, S, G, K]` has at places from j times `stride` on.

    M is S / stride, rounded up: the last ones are not whole, and their ends lie past all queries.

    Args:
        x: keys or values.
        weights: float32 `[length, G, K]`.
        stride: a divisor of `length`.
    """
    chunks = in_blocks(x.astype(jnp.float32), stride)  # [B, M, stride, G, K]
    total = 0
    for j, part in enumerate(weights.reshape(-1, stride, *weights.shape[1:])):
        product = jnp.sum(chunks[:, j:] * part, axis=2)
        total += jnp.pad(product, ((0, 0), (0, chunks.shape[1] - product.shape[1]), (0, 0), (0, 0)))
    return total.astype(x.dtype)


def ends(spec: NSA, count: int) -> jax.Array:
    """Returns int32 `[1, M]`, the place of each summary's last token."""
    return (jnp.arange(count, dtype=jnp.int32) * spec.stride + spec.length - 1)[None]


def summary_segments(segments: jax.Array, spec: NSA) -> jax.Array:
    """Returns int32 `[B, M]`, the document that each begins in; past its end, none of it sees the rest."""
    return segments[:, :: spec.stride]


def attend_to_summaries(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    spec: NSA,
    places: jax.Array,
    *,
    segments: tuple[jax.Array | None, jax.Array | None] = (None, None),
    extras: Extras = PLAIN,
) -> jax.Array:
    """Returns `[B, T, H, K]`, attention of `[B, T, H, K]` to summaries `[B, M, G, K]`.

    A block of queries at a time, made again in the backward pass: memory is that of one block.

    Args:
        query: at `places`, int32 `[B or 1, T]`.
        key: summaries.
        value: summaries.
        spec: the sizes.
        places: of the queries.
        segments: int32 `[B, T]` and `[B, M]`.
        extras: of the logits.
    """
    batch, length = query.shape[:2]
    places = jnp.broadcast_to(places, (batch, length))
    k_places = ends(spec, key.shape[1])

    @jax.checkpoint
    def step(row):
        q, q_places, q_segments = row
        both = None if q_segments is None else (q_segments, segments[1])
        return attend_by_mask(
            q,
            key,
            value,
            causal,
            positions=(q_places, k_places),
            segments=both,
            **extras._asdict(),
        )

    def in_steps(x):
        return None if x is None else jnp.swapaxes(in_blocks(x, min(_QUERIES, length)), 0, 1)

    out = jax.lax.map(step, tuple(in_steps(x) for x in (query, places, segments[0])))
    return jnp.swapaxes(out, 0, 1).reshape(batch, -1, *query.shape[2:])[:, :length]


def choose(
    query: jax.Array,
    key: jax.Array,
    spec: NSA,
    places: jax.Array,
    *,
    segments: jax.Array | None = None,
    extras: Extras = PLAIN,
) -> jax.Array:
    """Returns int32 `[B, G, N, n]`, the blocks for each of N queries, their own first; -1 is none.

    n is `spec.blocks`, or the number of blocks where that is less.

    Args:
        query: `[B, N, H, K]`.
        key: summaries `[B, M, G, K]`.
        spec: the sizes.
        places: of the queries, int32 `[B or 1, N]`.
        segments: int32 `[B, T]`, of all tokens.
        extras: of the logits.
    """
    of_queries = of_summaries = None
    if segments is not None:
        of_queries, of_summaries = segments[:, :: spec.every], summary_segments(segments, spec)
    weights = importance(query, key, spec, places, (of_queries, of_summaries), extras)
    scores = of_blocks(weights, spec)  # [B, G, N, blocks]
    count, own = scores.shape[-1], places // spec.size
    first, previous = jnp.arange(count) == 0, jnp.arange(count) == own[:, None, :, None] - 1
    if segments is None:
        scores = jnp.where(first | previous, jnp.inf, scores)
    else:
        # Of the documents in an earlier block only the last can be the query's.
        last = in_blocks(segments, spec.size)[:, :, -1]  # [B, blocks]
        first = jnp.diff(last, axis=1, prepend=-1) != 0
        scores = jnp.where(first[:, None, None] | previous, jnp.inf, scores)
        same = of_queries[:, None, :, None] == last[:, None, None]
        scores = jnp.where(same, scores, -jnp.inf)
    return chosen.best(scores, own, min(spec.blocks, count))


def importance(
    query: jax.Array,
    key: jax.Array,
    spec: NSA,
    places: jax.Array,
    segments: tuple[jax.Array | None, jax.Array | None],
    extras: Extras,
) -> jax.Array:
    """Returns float32 `[B, G, N, M]`, weights of summaries, summed over the heads that share keys."""
    query, key = jax.lax.stop_gradient((query, key))
    batch, count, heads, _ = query.shape
    groups = key.shape[2]
    distance = places[:, :, None] - ends(spec, key.shape[1])[:, None]  # [B or 1, N, M]
    allowed = distance >= 0
    if segments[0] is not None:
        allowed &= segments[0][:, :, None] == segments[1][:, None]
    logits, _ = block.logits(
        block.rows_of(block.split_heads(query, groups)),
        jnp.swapaxes(key, 1, 2),
        allowed,
        distance[:, None],
        extras,
    )
    logits = logits.reshape(batch, groups, heads // groups, count, -1)
    weights = jax.nn.softmax(logits, axis=-1) * allowed[:, None, None]
    return jnp.sum(weights, axis=2)


def of_blocks(weights: jax.Array, spec: NSA) -> jax.Array:
    """Returns `[..., blocks]` of `[..., M]`: the sums over strides of what their summaries weigh."""
    count, each = weights.shape[-1], spec.size // spec.stride

    def later(by: int) -> jax.Array:
        """Weights, moved by so many strides and filled up to whole blocks."""
        kept = weights[..., : max(count - by, 0)]
        missing = -(-count // each) * each - kept.shape[-1] - by
        return jnp.pad(kept, ((0, 0),) * (weights.ndim - 1) + ((by, missing),))

    # Stride s is part of the summaries s, s - 1, ...
    strides = sum(later(by) for by in range(min(spec.length // spec.stride, count)))
    return jnp.sum(strides.reshape(*weights.shape[:-1], -1, each), axis=-1)
