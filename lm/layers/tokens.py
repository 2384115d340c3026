"""What layers know of tokens besides their vectors."""

import jax
from flax import struct


@struct.dataclass
class Tokens:
    """Facts about `[B, T]` tokens, the same for all layers.

    Attributes:
        angles: sine and cosine of rotary positions, float32 `[B, T, K / 2]` each; None without them.
        segments: int32 `[B, T]`, the document of each token, 0 for padding; None is one a row.
        in_prefix: bool `[B, T]`: does the token belong to its document's prefix? None: there is none.
        order: int32 `[B, T]`, ranks of a permutation language model: a mask is asked about them, and not
            about places. None: there are none.
        streams: static; the tokens come twice. The second half are queries only, which see what the first
            half of a lower rank is, and not themselves.
        types: int32 `[B, T]`, which of several texts each token is of, where logits depend on it; None: all
            of one.
        relative: float32 `[buckets, H]`, the biases of relative positions; None without them.
        memory: `[B, S, D]`, what an encoder made of another text; None: there is none.
        memory_segments: int32 `[B, S]`, of which segment each of these may be read; None: of all.
        places: int32 `[B, T]`, only with a cache: the place in its row of each token; -1 for padding,
            which leaves the cache as it is.
        fresh: static; with a cache: rows begin here, at place 0, and the cache is empty.
    """

    angles: tuple[jax.Array, jax.Array] | None = None
    segments: jax.Array | None = None
    in_prefix: jax.Array | None = None
    order: jax.Array | None = None
    streams: bool = struct.field(pytree_node=False, default=False)
    types: jax.Array | None = None
    relative: jax.Array | None = None
    memory: jax.Array | None = None
    memory_segments: jax.Array | None = None
    places: jax.Array | None = None
    fresh: bool = struct.field(pytree_node=False, default=False)


UNKNOWN = Tokens()
