"""Layers of linear attention: what `lm.attention.linear` computes, with its projections and its cache.

What is remembered of a row has one size, however long the row is. The cache holds the float32 state, and
for `gated_delta` the last tokens that its convolutions see. Padding stands at the end of a row only.

`attention_softcap` and ALiBi's biases have no meaning here, since there are no logits.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention import linear, passed
from lm.attention.linear import GatedDelta, GatedLinear, Linear, Performer
from lm.config import ModelConfig
from lm.layers.attention import Cache, head_sizes, merge_heads, project
from lm.layers.dense import STDDEV, Dense, affine
from lm.layers.norm import RMSNorm
from lm.layers.tokens import UNKNOWN, Tokens


class LinearAttention(nn.Module):
    """Linear attention and the Performer, over `[B, T, D]`: the parameters are those of `Attention`.

    Rotary positions turn queries and keys before the feature map (Su et al. 2021, section 3.3).

    Attributes:
        config: the model.
        kind: which feature map.
    """

    config: ModelConfig
    kind: Linear | Performer

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: Tokens = UNKNOWN, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Returns `[B, T, D]` and the new cache; the arguments are those of `Attention`."""
        c = self.config
        query, key, value = project(c, x, tokens)
        run = functools.partial(linear.linear, kind=self.kind)
        out, state = _run(run, self.kind, (query, key, value), tokens, cache)
        return merge_heads(c, out), state

    @staticmethod
    def make_cache(config: ModelConfig, kind: Any, batch: int, length: int) -> Cache:
        """Returns an empty cache for `batch` rows of any length."""
        _, groups, width = head_sizes(config)
        return linear.empty(kind, batch, groups, width, width)

    @staticmethod
    def grow(cache: Cache, kind: Any, length: int) -> Cache:
        """Returns the cache, which has room for all tokens."""
        return cache


class GatedLinearAttention(nn.Module):
    """Gated linear attention (GLA) over `[B, T, D]`, without positions.

    Yang et al. 2023, https://arxiv.org/abs/2312.06635, section 4.4: a low-rank projection gives each
    channel of the keys its decay, each head's result is normed, and a swish of `x` gates it.

    Attributes:
        config: the model.
        kind: sizes.
    """

    config: ModelConfig
    kind: GatedLinear

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: Tokens = UNKNOWN, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Returns `[B, T, D]` and the new cache; the arguments are those of `Attention`."""
        c = self.config
        heads, groups, width = head_sizes(c)
        query, key, value = project(c, x, UNKNOWN)
        decay = LowRankDecay((groups, width), self.kind, jnp.dtype(c.dtype), name='decay')(x)
        arrays = query, key, value, decay
        out, state = _run(linear.gated_linear, self.kind, arrays, tokens, cache)
        gate = _dense(c)((heads, width), name='gate')(x)
        return merge_heads(c, _gated(out, gate)), state

    make_cache = LinearAttention.make_cache
    grow = LinearAttention.grow


class GatedDeltaNet(nn.Module):
    """Gated DeltaNet over `[B, T, D]`, without positions.

    Yang et al. 2024, https://arxiv.org/abs/2412.06464, section 3.4: queries, keys and values go through a
    short convolution and SiLU, queries and keys have length 1, each head's result is normed, and a swish
    of `x` gates it. The decay is that of Mamba-2 (Dao and Gu 2024, https://arxiv.org/abs/2405.21060).

    Attributes:
        config: the model.
        kind: sizes.
    """

    config: ModelConfig
    kind: GatedDelta

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: Tokens = UNKNOWN, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Returns `[B, T, D]` and the new cache; the arguments are those of `Attention`."""
        c = self.config
        heads, groups, width = head_sizes(c)
        values = self.kind.expand * width
        mixed, tails = {}, {}
        for name, new in zip(_STREAMS, _streams(c, x, values), strict=True):
            earlier = None if cache is None else cache[name]
            conv = ShortConv(self.kind.width, name=f'{name}_conv')
            mixed[name] = jax.nn.silu(conv(new, tokens.segments, earlier))
            if cache is not None:
                tails[name] = _tail(earlier, new, tokens.places)
        query, key = _unit(mixed['query']), _unit(mixed['key'])
        decay = Decay(groups, jnp.dtype(c.dtype), name='decay')(x)
        beta = jax.nn.sigmoid(
            Dense((groups,), dtype=jnp.dtype(c.dtype), name='beta')(x).astype(jnp.float32)
        )
        arrays = query, key, mixed['value'], decay, beta
        state = None if cache is None else {'state': cache['state']}
        out, state = _run(linear.gated_delta, self.kind, arrays, tokens, state)
        gate = _dense(c)((heads, values), name='gate')(x)
        out = merge_heads(c, _gated(out, gate))
        return out, None if cache is None else state | tails

    @staticmethod
    def make_cache(config: ModelConfig, kind: GatedDelta, batch: int, length: int) -> Cache:
        """Returns an empty cache for `batch` rows of any length."""
        heads, groups, width = head_sizes(config)
        values = kind.expand * width
        tails = {
            name: jnp.zeros((batch, kind.width - 1, *size), jnp.dtype(config.dtype))
            for name, size in zip(
                _STREAMS, ((heads, width), (groups, width), (groups, values)), strict=True
            )
        }
        return linear.empty(kind, batch, groups, width, values) | tails

    grow = LinearAttention.grow


# What goes through a convolution.
_STREAMS = ('query', 'key', 'value')


class LowRankDecay(nn.Module):
    """Logarithms of the decays of GLA: float32 `[B, T, G, K]` of `[B, T, D]`."""

    features: tuple[int, int]
    kind: GatedLinear
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Dense((self.kind.rank,), dtype=self.dtype, name='down')(x)
        x = Dense(self.features, bias=True, dtype=self.dtype, name='up')(x)
        return jax.nn.log_sigmoid(x.astype(jnp.float32)) / self.kind.temperature


class Decay(nn.Module):
    """Logarithms of the decays of Mamba-2: float32 `[B, T, G]` of `[B, T, D]`.

    They are `-rate * softplus(x W + bias)`. At first the rate is uniform between 0 and 16, and what it is
    multiplied with between 0.001 and 0.1, uniform in its logarithm.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', nn.initializers.normal(STDDEV), (x.shape[-1], self.features))
        bias = self.param('bias', _inverse_softplus, (self.features,))
        log_rate = self.param('log_rate', _log_rate, (self.features,))
        x = affine(x.astype(self.dtype), kernel, dtype=jnp.float32)
        return -jnp.exp(log_rate) * jax.nn.softplus(x + bias)


def _log_rate(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.log(jax.random.uniform(rng, shape, minval=1e-3, maxval=16.0))


def _inverse_softplus(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns x, of which `softplus(x)` is between 0.001 and 0.1, uniform in its logarithm."""
    low, high = math.log(0.001), math.log(0.1)
    step = jnp.exp(jax.random.uniform(rng, shape, minval=low, maxval=high))
    return step + jnp.log(-jnp.expm1(-step))


class ShortConv(nn.Module):
    """A causal convolution of each channel by itself, `[B, T, H, K] -> [B, T, H, K]` in float32.

    Attributes:
        width: W, the tokens that each sees, its own the last of them.
    """

    width: int

    @nn.compact
    def __call__(
        self, x: jax.Array, segments: jax.Array | None, earlier: jax.Array | None
    ) -> jax.Array:
        """Returns the sums.

        Args:
            x: `[B, T, H, K]`.
            segments: int32 `[B, T]`, kept apart; or None.
            earlier: `[B, W - 1, H, K]`, the tokens before; None is zeros.
        """
        bound = self.width**-0.5  # as in PyTorch: of the inputs of one channel
        init = nn.initializers.uniform(2 * bound)
        kernel = self.param(
            'kernel', lambda rng, shape: init(rng, shape) - bound, (self.width, *x.shape[2:])
        )
        kernel = kernel.astype(x.dtype).astype(jnp.float32)
        before = self.width - 1
        if earlier is None:
            rows = jnp.pad(x, ((0, 0), (before, 0), (0, 0), (0, 0)))
        else:
            rows = jnp.concatenate([earlier, x], axis=1)
        if segments is not None:
            owners = jnp.pad(segments, ((0, 0), (before, 0)))
        y = jnp.zeros(x.shape, jnp.float32)
        for i in range(self.width):
            part = kernel[i] * rows[:, i : i + x.shape[1]].astype(jnp.float32)
            if segments is not None:
                same = owners[:, i : i + x.shape[1]] == segments
                part = jnp.where(same[:, :, None, None], part, 0.0)
            y += part
        return y


def _tail(tail: jax.Array, x: jax.Array, places: jax.Array) -> jax.Array:
    """Returns the last tokens of `[B, W - 1, H, K]` and `[B, T, H, K]` together, padding apart."""
    count = jnp.sum(places >= 0, axis=1)[:, None]  # [B, 1]
    last = count + jnp.arange(tail.shape[1])
    rows = jnp.concatenate([tail, x], axis=1)
    return jnp.take_along_axis(rows, last[:, :, None, None], axis=1)


def _streams(config: ModelConfig, x: jax.Array, values: int) -> tuple[jax.Array, ...]:
    """Returns the query `[B, T, H, K]`, the key `[B, T, G, K]` and the value `[B, T, G, V]`."""
    heads, groups, width = head_sizes(config)
    sizes = (heads, width), (groups, width), (groups, values)
    return tuple(
        _dense(config)(size, name=name)(x) for name, size in zip(_STREAMS, sizes, strict=True)
    )


def _gated(out: jax.Array, gate: jax.Array) -> jax.Array:
    """Returns each head's result, `[B, T, H, V]`, normed and gated."""
    normed = RMSNorm(name='out_norm')(out)
    return (normed * jax.nn.silu(gate.astype(jnp.float32))).astype(gate.dtype)


def _dense(config: ModelConfig) -> Any:
    dtype = jnp.dtype(config.dtype)
    return functools.partial(Dense, bias=config.bias, dtype=dtype, matmul=config.matmul)


def _unit(x: jax.Array) -> jax.Array:
    """Returns vectors of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def _run(
    run: passed.Run,
    kind: Any,
    arrays: tuple[jax.Array, ...],
    tokens: Tokens,
    state: linear.State | None,
) -> tuple[jax.Array, linear.State | None]:
    """Returns what queries read, `[B, T, H, V]`, and the next state, if there was one before."""
    if state is None:
        return passed.attend(run, kind, *arrays, segments=tokens.segments), None
    real = jnp.where(tokens.places >= 0, 1, 0)
    return run(*arrays, segments=real, state=state)
