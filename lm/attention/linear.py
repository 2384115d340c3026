"""Linear attention: a state of constant size in place of all keys, at a cost that is linear in T.

    linear           S += f(k) v^T                                 f = elu + 1
    performer        S += f(k) v^T                                 f: random features of the softmax
    gated_linear     S  = diag(a) S + k v^T                        a: a decay for each channel of the key
    gated_delta      S  = a S + b k (v - a S^T k)^T                a: a decay for each head

and every query reads `S^T f(q)`; the first two divide it by the sum of their weights. All are computed a
chunk of tokens at a time: pairs within a chunk by matrix products, the rest through the state before it
(Hua et al. 2022, https://arxiv.org/abs/2202.10447; Yang et al. 2023, https://arxiv.org/abs/2312.06635). A
chunk of one token is the recurrence itself, which is what decoding does. Everything is float32, no
exponential is of a positive number, and the backward pass computes the chunks again, so that it keeps
what came in and no more.

The three functions take a state and return the next one, so that a row may come in pieces. `segments` are
kept apart: a state does not outlive its segment. Tokens of segment 0 are padding and change no state; what
comes out for them has no meaning. Tokens of a segment lie together, padding apart, and an earlier state
belongs to the segment of the row's first real token.

Letters: N chunks of C tokens, R heads of queries for each of the G heads of keys, M features of a key,
V channels of a value. Inside, queries are `[N, B, G, R, C, K]`, keys and values `[N, B, G, C, K]`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import InputError

CHUNK = 64  # Tokens. More pairs a chunk cost more, fewer fill no matrix product.
_LEAF = 8  # Tokens: pairs of so few are decayed one by one, channel by channel.
_LOWEST = -1e30  # A logarithm of nothing, and finite: the difference of two is 0.

State = dict[str, jax.Array]


# --- kinds ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A name and numbers, written as in a config: `performer(features=128)`."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), field.name
            least = 0 if name in ('seed', 'causal') else 1
            if type(value) is not int or value < least:
                raise InputError(f'{self}: {name} must be an integer of at least {least}.')
            if name == 'causal' and value > 1:
                raise InputError(f'{self}: causal must be 1, or 0 to see later tokens too.')

    def __str__(self):
        fields = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        changed = ', '.join(
            f'{name}={value}' for name, value, default in fields if value != default
        )
        name = next(name for name, kind in KINDS.items() if kind is type(self))
        return f'{name}({changed})' if changed else name

    @property
    def is_causal(self) -> bool:
        """Whether no token sees a later one."""
        return bool(getattr(self, 'causal', 1))

    @property
    def may_pack(self) -> bool:
        """The state starts again with each document."""
        return True


@dataclasses.dataclass(frozen=True)
class Linear(_Kind):
    """Weights are `f(q) f(k)`, f = elu + 1 (Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236).

    Attributes:
        causal: 1; 0 sees later tokens too, for encoders.
    """

    causal: int = 1


@dataclasses.dataclass(frozen=True)
class Performer(_Kind):
    """Weights are those of softmax attention, in expectation (Choromanski et al. 2021).

    FAVOR+ of https://arxiv.org/abs/2009.14794: positive features, of orthogonal random directions.

    Attributes:
        features: M. The error falls with its root; the paper's choice is about `K log K`.
        seed: of the directions, which are constants of the model and not parameters.
        causal: 1; 0 sees later tokens too, for encoders.
    """

    features: int = 256
    seed: int = 0
    causal: int = 1


@dataclasses.dataclass(frozen=True)
class GatedLinear(_Kind):
    """Gated linear attention, GLA (Yang et al. 2023, https://arxiv.org/abs/2312.06635).

    Attributes:
        rank: of the projection that the decays come from, D to rank to G K.
        temperature: decays are `sigmoid(.)^(1 / temperature)`: the larger, the slower.
    """

    rank: int = 16
    temperature: int = 16


@dataclasses.dataclass(frozen=True)
class GatedDelta(_Kind):
    """Gated DeltaNet (Yang et al. 2024, https://arxiv.org/abs/2412.06464).

    Attributes:
        width: tokens that the short convolutions see.
        expand: V / K. The paper's is 2, with fewer heads.
    """

    width: int = 4
    expand: int = 1


KINDS: dict[str, type[_Kind]] = {
    'linear': Linear,
    'performer': Performer,
    'gated_linear': GatedLinear,
    'gated_delta': GatedDelta,
}


def empty(
    kind: _Kind,
    batch: int,
    groups: int,
    width: int,
    values: int,
    dtype: Any = jnp.float32,
) -> State:
    """Returns the state before the first token.

    Args:
        kind: one of `KINDS`.
        batch: B.
        groups: G.
        width: K, of a key.
        values: V, of a value.
        dtype: of the state.
    """
    match kind:
        case Linear():
            return {'sums': jnp.zeros((batch, groups, width, values + 1), dtype)}
        case Performer(features):
            return {
                'sums': jnp.zeros((batch, groups, features, values + 1), dtype),
                'top': jnp.full((batch, groups, features), _LOWEST, dtype),
            }
    return {'state': jnp.zeros((batch, groups, width, values), dtype)}


def empty_for(kind: _Kind, key: jax.Array, value: jax.Array) -> State:
    """Returns the state before the first token, for `[B, T, G, K]` keys and `[B, T, G, V]` values."""
    batch, _, groups, width = key.shape
    return empty(kind, batch, groups, width, value.shape[3], _wide(key.dtype))


def _wide(dtype: Any) -> Any:
    """Returns what is computed in: float32, and float64 for that alone."""
    return jnp.promote_types(dtype, jnp.float32)


# --- the three functions --------------------------------------------------------------------------


def linear(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    kind: Linear | Performer,
    *,
    segments: jax.Array | None = None,
    state: State | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, State | None]:
    """Returns the mean of the values, weighted by `f(q) f(k)`, and the state after the last token.

    Args:
        query: `[B, T, H, K]`.
        key: `[B, T, G, K]`, each of the G heads for H / G heads of queries.
        value: `[B, T, G, V]`.
        kind: which f.
        segments: int32 `[B, T]`, 0 for padding; None is one a row.
        state: after earlier tokens; None: there are none.
        chunk: C, tokens; a power of two.

    Returns:
        `[B, T, H, V]` in the dtype of the query, zeros where weights are too small for float32; and the
        state, None where later tokens are seen.
    """
    run = functools.partial(_linear, kind=kind, chunk=chunk)
    state = state or empty_for(kind, key, value)
    return jax.checkpoint(run)(query, key, value, segments, state)


def gated_linear(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    log_decay: jax.Array,
    *,
    segments: jax.Array | None = None,
    state: State | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, State]:
    """Returns what queries read of `S = diag(exp(log_decay)) S + k v^T`, and the last S.

    Args:
        query: `[B, T, H, K]`; products with keys are divided by `sqrt(K)`.
        key: `[B, T, G, K]`.
        value: `[B, T, G, V]`.
        log_decay: float32 `[B, T, G, K]`, at most 0.
        segments, state, chunk: as in `linear`.

    Returns:
        `[B, T, H, V]` in the dtype of the query, and the state.
    """
    run = functools.partial(_gated_linear, chunk=chunk)
    state = state or empty_for(GatedLinear(), key, value)
    return jax.checkpoint(run)(query, key, value, log_decay, segments, state)


def gated_delta(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array,
    *,
    segments: jax.Array | None = None,
    state: State | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, State]:
    """Returns what queries read of `S = a S + b k (v - a S^T k)^T`, and the last S.

    Args:
        query: `[B, T, H, K]`; products with keys are divided by `sqrt(K)`.
        key: `[B, T, G, K]`, of length 1 at most where `beta` may be 1.
        value: `[B, T, G, V]`.
        log_decay: float32 `[B, T, G]`, of a; at most 0.
        beta: float32 `[B, T, G]`, b, between 0 and 1: how much of what the key had is replaced.
        segments, state, chunk: as in `linear`.

    Returns:
        `[B, T, H, V]` in the dtype of the query, and the state.
    """
    run = functools.partial(_gated_delta, chunk=chunk)
    state = state or empty_for(GatedDelta(), key, value)
    return jax.checkpoint(run)(query, key, value, log_decay, beta, segments, state)


def _linear(query, key, value, segments, state, kind, chunk):
    length, groups = key.shape[1:3]
    size = _chunk_size(length, chunk)
    spans = _spans(segments, length, size)
    q, k, v = _split_queries(query, groups, size), _split(key, size), _split(value, size)
    v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)  # the sum of weights is one more
    q, k, shrink, tops = _features(kind, q, k, spans.real, state)
    sums, last = _weighted_sums(q, k, v, shrink, spans, state['sums'])
    if not kind.causal:
        backwards = _spans(_reversed(segments, size), k.shape[0] * size, size, own=False)
        later, _ = _weighted_sums(*map(_flip, (q, k, v)), shrink, backwards, state['sums'])
        sums += _flip(later)
    state = {'sums': last, **tops} if kind.causal else None
    return _join_queries(_mean(sums), length, query.dtype), state


def _gated_linear(query, key, value, log_decay, segments, state, chunk):
    length, groups, width = key.shape[1:]
    size = _chunk_size(length, chunk)
    spans = _spans(segments, length, size)
    q, v = _split_queries(query, groups, size) * width**-0.5, _split(value, size)
    k, g = (_only(spans.real[..., None], _split(x, size)) for x in (key, log_decay))
    total = _running(g, spans.pairs)  # [N, B, G, C, K]
    products = jax.vmap(_decayed_products, in_axes=(3, None, None, None), out_axes=3)
    pairs = products(q, k, total, spans.runs)  # [N, B, G, R, C, C]
    end = total[..., -1:, :]
    through = jnp.exp(_mask_log(spans.reads[..., -1:, None], end))  # [N, B, G, 1, K]
    k *= jnp.exp(_mask_log(spans.keeps[..., None], end - total))
    start = jnp.exp(_mask_log(spans.reads[..., None], total))[:, :, :, None]
    added = jnp.einsum('nbgck,nbgcv->nbgkv', k, v)
    before, last = _states(jnp.swapaxes(through, -1, -2), added, state['state'])
    out = jnp.einsum('nbgrts,nbgsv->nbgrtv', pairs, v)
    out += jnp.einsum('nbgrtk,nbgkv->nbgrtv', q * start, before)
    return _join_queries(out, length, query.dtype), {'state': last}


def _gated_delta(query, key, value, log_decay, beta, segments, state, chunk):
    """With the products of `I - b k k^T` in a chunk as one triangular system (the UT transform)."""
    length, groups, width = key.shape[1:]
    size = _chunk_size(length, chunk)
    spans = _spans(segments, length, size)
    q, v = _split_queries(query, groups, size) * width**-0.5, _split(value, size)
    k = _only(spans.real[..., None], _split(key, size))
    g, b = (_split(x[..., None], size) for x in (log_decay, beta))  # [N, B, G, C, 1]
    g = _only(spans.real[..., None], g)
    decays = jnp.exp(_mask_log(spans.pairs, _between(g)))  # [N, B, G, C, C]
    start = jnp.exp(_mask_log(spans.reads[..., None], _running(g)))  # [N, B, G, C, 1]
    # What each token writes is u - w S, where S is the state before the chunk.
    system = jnp.einsum('nbgtk,nbgsk->nbgts', b * k, k) * decays
    written = _inverse(system) @ (b * jnp.concatenate([v, k * start], axis=-1))
    u, w = jnp.split(written, [v.shape[-1]], axis=-1)
    kept = k * decays[..., -1, :, None]

    taken = jnp.einsum('nbgck,nbgcl->nbgkl', kept, w)
    added = jnp.einsum('nbgck,nbgcv->nbgkv', kept, u)

    def step(state, x):
        taken, added, through = x
        return through * state - taken @ state + added, state

    last, before = jax.lax.scan(step, state['state'], (taken, added, start[..., -1:, :]))
    new = u - w @ before  # [N, B, G, C, V]
    pairs = jnp.einsum('nbgrtk,nbgsk->nbgrts', q, k) * decays[:, :, :, None]
    out = jnp.einsum('nbgrts,nbgsv->nbgrtv', pairs, new)
    out += jnp.einsum('nbgrtk,nbgkv->nbgrtv', q * start[:, :, :, None], before)
    return _join_queries(out, length, query.dtype), {'state': last}


# --- features -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def directions(features: int, width: int, seed: int) -> np.ndarray:
    """Returns float32 `[M, K]`: Gaussian vectors, those of each block of K orthogonal to one another."""
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(-(-features // width)):
        matrix, triangle = np.linalg.qr(rng.normal(size=(width, width)))
        blocks.append(matrix * np.sign(np.diagonal(triangle)))  # of uniform distribution
    lengths = np.linalg.norm(rng.normal(size=(features, width)), axis=1, keepdims=True)
    return (lengths * np.concatenate(blocks)[:features]).astype(np.float32)


def _features(kind, q, k, real, state):
    """Returns non-negative features of queries and keys.

    Returns:
        Features `[N, B, G, R, C, M]` and `[N, B, G, C, M]`, 0 for keys of padding; by what the state is
        multiplied before each chunk, `[N, B, G, M, 1]` or 1; and what the next piece of the row needs.
    """
    if isinstance(kind, Linear):
        return jax.nn.elu(q) + 1, _only(real[..., None], jax.nn.elu(k) + 1), 1.0, {}
    q, k = (_log_features(kind, x) for x in (q, k))
    # Each feature of the keys is divided by its largest so far, and that of the queries multiplied by it.
    # The sums of a row have one factor in common, in which no gradient has a part.
    top = jnp.max(jnp.where(real[..., None], jax.lax.stop_gradient(k), _LOWEST), axis=-2)
    if not kind.causal:
        top = jnp.broadcast_to(jnp.max(top, axis=0), top.shape)
    tops = jax.lax.cummax(jnp.concatenate([state['top'][None], top]), axis=0)  # [N + 1, B, G, M]
    before, top = tops[:-1], tops[1:]
    k = jnp.exp(_mask_log(real[..., None], k - top[..., None, :]))
    q += top[..., None, None, :]
    q = jnp.exp(q - jax.lax.stop_gradient(jnp.max(q, axis=-1, keepdims=True)))
    return q, k, jnp.exp(before - top)[..., None], {'top': tops[-1]}


def _log_features(kind: Performer, x: jax.Array) -> jax.Array:
    """Returns `w x - |x|^2 / 2` of each direction w, `[..., M]`, for logits divided by `sqrt(K)`."""
    x *= x.shape[-1] ** -0.25
    w = directions(kind.features, x.shape[-1], kind.seed)
    return jnp.einsum('...k,mk->...m', x, w) - 0.5 * jnp.sum(x * x, axis=-1, keepdims=True)


def _weighted_sums(q, k, v, shrink, spans, state):
    """Returns the sums of values that each query sees, `[N, B, G, R, C, V]`, and the last state."""
    pairs = jnp.einsum('nbgrtm,nbgsm->nbgrts', q, k)
    pairs = _only(spans.pairs[:, :, :, None], pairs)
    added = jnp.einsum('nbgcm,nbgcv->nbgmv', _only(spans.keeps[..., None], k), v)
    before, last = _states(_only(spans.reads[..., -1:, None], shrink), added, state)
    earlier = jnp.einsum('nbgrtm,nbgmv->nbgrtv', q, shrink * before)
    earlier = _only(spans.reads[:, :, :, None, :, None], earlier)
    return jnp.einsum('nbgrts,nbgsv->nbgrtv', pairs, v) + earlier, last


def _mean(sums: jax.Array) -> jax.Array:
    """Returns the first sums divided by the last one; 0 where that is too small."""
    total = sums[..., -1:]
    some = total > jnp.finfo(total.dtype).tiny
    # The gradient of a quotient has the square of its divisor, which may be too small: so that is made 1.
    scale = jax.lax.stop_gradient(jnp.where(some, 1 / jnp.where(some, total, 1.0), 0.0))
    sums, total = sums[..., :-1] * scale, total * scale
    return sums / jnp.where(some, total, 1.0)


# --- decays ---------------------------------------------------------------------------------------


def _running(g: jax.Array, pairs: Any = None) -> jax.Array:
    """Returns sums along C of `[..., C, K]`, up to each token and with its own.

    Args:
        g: `[..., C, K]`.
        pairs: bool `[N, B, 1, C, C]`, which tokens go into which sum. None, and what is known beforehand:
            all that are not later.
    """
    if isinstance(pairs, jax.Array):
        ones = pairs[:, :, 0].astype(g.dtype)
        return jnp.einsum('nbts,nbgsk->nbgtk', ones, g, precision='highest')
    ones = np.tri(g.shape[-2], dtype=np.float32)
    return jnp.einsum('ts,...sk->...tk', ones, g, precision='highest')


def _between(g: jax.Array) -> jax.Array:
    """Returns `[..., C, C]` of `[..., C, 1]`: the sums over tokens after s, up to t; 0 where t <= s.

    Not as a difference of two sums from the start of the chunk, in which small ones would be lost.
    """
    return _running(jnp.where(np.tri(g.shape[-2], k=-1, dtype=bool), g, 0.0))


def _decayed_products(q: jax.Array, k: jax.Array, total: jax.Array, runs: Any) -> jax.Array:
    """Returns `sum_K q_t k_s exp(total_t - total_s)`, `[..., C, C]`; 0 where s is after t.

    The tokens are halved again and again. A product of queries of the second half with keys of the first
    is one of matrices: each side decays from or to the middle.

    Args:
        q: `[..., C, K]`.
        k: `[..., C, K]`.
        total: `[..., C, K]`, running sums of logarithms of decays, from the start of each segment.
        runs: int `[..., C]`, which segment a token is of; of different ones the product is 0.
    """
    size = q.shape[-2]
    if size <= _LEAF:
        same = runs[..., :, None] == runs[..., None, :]
        return _leaf_products(q, k, total, same & np.tri(size, dtype=bool))
    q, k, total = (x.reshape(*x.shape[:-2], 2, size // 2, x.shape[-1]) for x in (q, k, total))
    runs = runs.reshape(*runs.shape[:-1], 2, size // 2)
    # Between two tokens of a segment all are of it, and so is the last one of the first half.
    middle, same = total[..., 0, -1:, :], (runs == runs[..., :1, -1:])[..., None]
    later = jnp.exp(_mask_log(same[..., 1, :, :], total[..., 1, :, :] - middle))
    earlier = jnp.exp(_mask_log(same[..., 0, :, :], middle - total[..., 0, :, :]))
    across = jnp.einsum('...tk,...sk->...ts', q[..., 1, :, :] * later, k[..., 0, :, :] * earlier)
    inner = _decayed_products(q, k, total, runs)  # [..., 2, C / 2, C / 2]
    first = jnp.concatenate([inner[..., 0, :, :], jnp.zeros_like(across)], axis=-1)
    second = jnp.concatenate([across, inner[..., 1, :, :]], axis=-1)
    return jnp.concatenate([first, second], axis=-2)


@jax.custom_vjp
def _leaf_products(q, k, total, seen):
    """As `_decayed_products`, a pair and a channel at a time; `seen` is bool `[..., C, C]`."""
    return jnp.sum(q[..., :, None, :] * k[..., None, :, :] * _leaf_decays(total, seen), axis=-1)


def _leaf_decays(total, seen):
    """Returns `[..., C, C, K]`."""
    return jnp.exp(_mask_log(seen[..., None], total[..., :, None, :] - total[..., None, :, :]))


def _leaf_backward(residuals, gradient):
    q, k, total, seen = residuals
    weights = gradient[..., None] * _leaf_decays(total, seen)  # [..., t, s, K]
    d_q = jnp.sum(weights * k[..., None, :, :], axis=-2)
    d_k = jnp.sum(weights * q[..., :, None, :], axis=-3)
    return d_q, d_k, q * d_q - k * d_k, None


_leaf_products.defvjp(lambda *x: (_leaf_products(*x), x), _leaf_backward)


@jax.custom_vjp
def _inverse(x: jax.Array) -> jax.Array:
    """Returns inverses of lower triangular matrices `[..., C, C]` with a diagonal of 1, whatever is there.

    By halves, as forward substitution of blocks: all of it is products of matrices, where XLA's solver for
    CPU takes one column after the other.
    """
    size = x.shape[-1]
    if size == 1:
        return jnp.ones_like(x)
    half = size // 2
    both = _inverse(jnp.stack([x[..., :half, :half], x[..., half:, half:]], axis=-3))
    first, second = both[..., 0, :, :], both[..., 1, :, :]
    across = -(second @ x[..., half:, :half]) @ first
    upper = jnp.concatenate([first, jnp.zeros_like(across)], axis=-1)
    return jnp.concatenate([upper, jnp.concatenate([across, second], axis=-1)], axis=-2)


def _inverse_forward(x):
    inverse = _inverse(x)
    return inverse, inverse


def _inverse_backward(inverse, gradient):
    transposed = jnp.swapaxes(inverse, -1, -2)
    return (-jnp.tril(transposed @ gradient @ transposed, k=-1),)


_inverse.defvjp(_inverse_forward, _inverse_backward)


def _mask_log(mask: Any, x: jax.Array) -> jax.Array:
    """Returns logarithms where a mask says so, else that of nothing."""
    return x if _everywhere(mask) else jnp.where(mask, x, _LOWEST)


def _only(mask: Any, x: Any) -> Any:
    """Returns `x` where a mask says so, else 0."""
    return x if _everywhere(mask) else jnp.where(mask, x, 0.0)


def _everywhere(mask: Any) -> bool:
    """Whether a mask is known to be True, and need not be asked."""
    return isinstance(mask, np.ndarray) and mask.all()


# --- chunks ---------------------------------------------------------------------------------------


class _Spans(NamedTuple):
    """Which tokens have to do with each other, and with the state before their chunk: bool, but `runs`.

    Attributes:
        real: `[N, B or 1, 1, C]`, not padding.
        pairs: `[N, B or 1, 1, C, C]`, the query's segment is the key's, which is not later.
        reads: `[N, B or 1, 1, C]`, the token's segment is the one of the state before.
        keeps: `[N, B or 1, 1, C]`, the token's segment is the one of the state after.
        runs: int, `[N, B or 1, 1, C]`, which segment of the row it is.
    """

    real: Any
    pairs: Any
    reads: Any
    keeps: Any
    runs: Any


def _spans(segments: jax.Array | None, length: int, size: int, own: bool = True) -> _Spans:
    """Returns the spans of a row; those of numpy where they are known beforehand.

    Args:
        segments: int32 `[B, T]` or None.
        length: T.
        size: C.
        own: a token sees itself.
    """
    chunks = -(-length // size)
    before = np.tri(size, k=0 if own else -1, dtype=bool)
    if segments is None:
        real = (np.arange(chunks * size) < length).reshape(chunks, 1, 1, size)
        everything = np.ones((1, 1, 1, size), bool)
        runs = np.zeros(everything.shape, np.int32)
        return _Spans(real, before[None, None, None], everything, everything, runs)
    segments = jnp.pad(segments, ((0, 0), (0, chunks * size - length)))
    runs = run_numbers(segments).reshape(-1, chunks, size)  # [B, N, C]
    earlier = jnp.pad(runs[:, :-1, -1:], ((0, 0), (1, 0), (0, 0)))  # [B, N, 1]
    spans = _Spans(
        (segments > 0).reshape(runs.shape),
        (runs[..., :, None] == runs[..., None, :]) & before,
        runs == earlier,
        runs == runs[..., -1:],
        runs,
    )
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1)[:, :, None], spans)


def run_numbers(segments: jax.Array) -> jax.Array:
    """Returns int32 `[B, T]`, how often the segment has changed; padding goes with what is before it.

    `[[0, 3, 3, 0, 5, 5, 0]]` becomes `[[0, 0, 0, 0, 1, 1, 1]]`.
    """
    places = jnp.where(segments > 0, jnp.arange(segments.shape[1]), 0)
    last = jnp.take_along_axis(segments, jax.lax.cummax(places, axis=1), axis=1)
    changed = (last[:, 1:] != last[:, :-1]) & (last[:, :-1] > 0)
    return jnp.pad(jnp.cumsum(changed, axis=1), ((0, 0), (1, 0)))


def _reversed(segments: jax.Array | None, size: int) -> jax.Array | None:
    """Returns segments from the last token to the first, after what fills up the last chunk."""
    if segments is None:
        return None
    return jnp.flip(jnp.pad(segments, ((0, 0), (0, -segments.shape[1] % size))), axis=1)


def _chunk_size(length: int, chunk: int) -> int:
    """Returns C: that asked for, or the power of two from T on."""
    return min(chunk, 1 << max(length - 1, 0).bit_length())


def _states(
    through: jax.Array | float, added: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the state before each chunk, `[N, B, G, K, V]`, and the one after the last.

    Args:
        through: what is left of the state at a chunk's end, `[N, B, G, K, 1]` or broadcastable to it.
        added: by each chunk, `[N, B, G, K, V]`.
        state: before the first, `[B, G, K, V]`.
    """
    through = jnp.broadcast_to(through, (*added.shape[:-1], 1))

    def step(state, x):
        through, added = x
        return through * state + added, state

    last, before = jax.lax.scan(step, state, (through, added))
    return before, last


def _split(x: jax.Array, size: int) -> jax.Array:
    """Returns float32 `[N, B, G, C, K]` of `[B, T, G, K]`, filled up with zeros."""
    batch, length, groups, width = x.shape
    x = jnp.pad(x.astype(_wide(x.dtype)), ((0, 0), (0, -length % size), (0, 0), (0, 0)))
    return jnp.transpose(x.reshape(batch, -1, size, groups, width), (1, 0, 3, 2, 4))


def _split_queries(x: jax.Array, groups: int, size: int) -> jax.Array:
    """Returns float32 `[N, B, G, R, C, K]` of `[B, T, H, K]`."""
    batch, _, heads, width = x.shape
    x = _split(x, size)  # [N, B, H, C, K]
    return x.reshape(-1, batch, groups, heads // groups, size, width)


def _join_queries(x: jax.Array, length: int, dtype: Any) -> jax.Array:
    """Returns `[B, T, H, V]` of `[N, B, G, R, C, V]`."""
    chunks, batch, groups, repeats, size, width = x.shape
    x = jnp.transpose(x, (1, 0, 4, 2, 3, 5))
    return x.reshape(batch, chunks * size, groups * repeats, width)[:, :length].astype(dtype)


def _flip(x: jax.Array) -> jax.Array:
    """Returns `[N, ..., C, K]` from the last token to the first."""
    return jnp.flip(x, axis=(0, -2))
