"""Attention to the blocks of keys whose means match best: MoBA (Lu et al. 2025).

https://arxiv.org/abs/2502.13189. Keys lie in blocks of `size`, from place 0. Queries see their own block
up to themselves, and the `blocks - 1` earlier blocks whose mean key has the largest product with a query.

In the paper every query of every head chooses. Here `every` consecutive queries share a choice, and so do
the heads that share a head of keys: then what is fetched is multiplied with many queries, and cost is that
of matrix products. The choice is that of the first of these queries (the mean over the heads): a mean over
all of them would tell the first what the last is. So all is exactly causal, and a step of decoding knows
the choice of its chunk. With `every=1` and as many heads of keys as of queries it is the paper's.

The choice itself has no gradient, as in the paper: means and queries learn as keys and queries.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lm.attention import chosen
from lm.attention.block import PLAIN, Extras, Segments
from lm.errors import InputError


@dataclasses.dataclass(frozen=True)
class TopK:
    """The best `blocks` blocks of `size` keys, chosen anew every so many tokens.

    Attributes:
        blocks: the own one included.
        size: tokens.
        every: tokens that share a choice, a divisor of `size`; 0 is `size`.
    """

    blocks: int = 8
    size: int = 64
    every: int = 0

    def __post_init__(self):
        check(self, at_least={'blocks': 1, 'size': 1, 'every': 0})
        if not self.every:
            object.__setattr__(self, 'every', self.size)
        if self.size % self.every:
            raise InputError(f'{self}: every must divide size.')

    def __str__(self):
        return f'topk({self.blocks}, {self.size}, {self.every})'

    @property
    def is_causal(self) -> bool:
        """No token sees a later one, nor does a choice."""
        return True

    @property
    def may_pack(self) -> bool:
        """Where a document starts in a row moves the edges of its blocks, and no more."""
        return True


def check(spec, at_least: dict[str, int]) -> None:
    """Raises InputError where a field of a spec is no integer of at least so much."""
    for name, least in at_least.items():
        value = getattr(spec, name)
        if type(value) is not int or value < least:
            raise InputError(f'{spec}: {name} must be an integer of at least {least}.')


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    spec: TopK,
    *,
    segments: jax.Array | None = None,
    extras: Extras = PLAIN,
) -> jax.Array:
    """Returns `[B, T, H, K]`: causal attention to the chosen blocks.

    Args:
        query: `[B, T, H, K]`.
        key: `[B, T, G, K]`.
        value: `[B, T, G, K]`.
        spec: what is chosen.
        segments: int32 `[B, T]`, of documents that lie one after the other. Tokens neither see nor choose
            by those of others. Blocks are laid in the row: a document that begins at a multiple of `size`
            has the result that it has alone; another one has other blocks than alone.
        extras: of the logits of attention. The choice is without them.
    """
    picked = choose(query, means(key, spec, segments), spec, segments=segments)
    both: Segments | None = None if segments is None else (segments, segments)
    return chosen.attend(
        query,
        key,
        value,
        picked,
        size=spec.size,
        every=spec.every,
        segments=both,
        extras=extras,
    )


def means(key: jax.Array, spec: TopK, segments: jax.Array | None = None) -> jax.Array:
    """Returns float32 `[B, G, M, K]`, the mean key of each block of `[B, S, G, K]`.

    With segments, of the last document of the block: no other one has queries after it. Of the last block,
    where it is not whole, zeros count as keys: no query comes after it.
    """
    batch, length, groups, width = key.shape
    key = in_blocks(jax.lax.stop_gradient(key).astype(jnp.float32), spec.size)
    if segments is None:
        return jnp.swapaxes(jnp.mean(key, axis=2), 1, 2)
    segments = in_blocks(segments, spec.size)
    own = (segments == segments[:, :, -1:]).astype(jnp.float32)  # [B, M, size]
    own /= jnp.sum(own, axis=2, keepdims=True)
    return jnp.einsum('bms,bmsgk->bgmk', own, key, precision='highest')


def choose(
    query: jax.Array,
    means: jax.Array,
    spec: TopK,
    *,
    segments: jax.Array | None = None,
    places: jax.Array | None = None,
) -> jax.Array:
    """Returns int32 `[B, G, N, n]`, the blocks for each of N chunks, their own first; -1 is none.

    n is `spec.blocks`, or M where that is less.

    Args:
        query: `[B, T, H, K]`; every `spec.every`-th chooses, or with places every one.
        means: of `means`, `[B, G, M, K]`.
        spec: what is chosen.
        segments: int32 `[B, T]`.
        places: int32 `[B, T]`, of queries; None is 0, 1, 2, ...
    """
    if places is None:
        query = query[:, :: spec.every]
        places = jnp.arange(query.shape[1], dtype=jnp.int32)[None] * spec.every
    groups, blocks = means.shape[1:3]
    query = pooled(query, groups)
    scores = jnp.einsum('bgnk,bgmk->bgnm', query, means, precision='highest')
    if segments is not None:
        ends = in_blocks(segments, spec.size)[:, None, None, :, -1]  # [B, 1, 1, M]
        same = segments[:, None, :: spec.every, None] == ends
        scores = jnp.where(same, scores, -jnp.inf)
    return chosen.best(scores, places // spec.size, min(spec.blocks, blocks))


def pooled(query: jax.Array, groups: int) -> jax.Array:
    """Returns float32 `[B, G, T, K]`, the mean of the heads that share a head of keys."""
    query = jax.lax.stop_gradient(query).astype(jnp.float32)
    query = query.reshape(*query.shape[:2], groups, -1, query.shape[-1])
    return jnp.swapaxes(jnp.mean(query, axis=3), 1, 2)


def in_blocks(x: jax.Array, size: int) -> jax.Array:
    """Returns `[B, M, size, ...]` of `[B, T, ...]`, filled up with zeros."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])
