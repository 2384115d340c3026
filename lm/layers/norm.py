"""Normalisation over the last axis. Statistics are float32 in every compute dtype."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.errors import lookup


def rms_normalise(x: jax.Array, eps: float) -> jax.Array:
    """Returns float32 `x / sqrt(mean(x^2) + eps)`."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


class RMSNorm(nn.Module):
    """Divides by the root mean square (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    bias: bool = False  # Has none; the norms of the table are built alike.
    dtype: jnp.dtype = jnp.float32
    epsilon: float = 1e-6

    # What is added to the parameter.
    offset: ClassVar[float] = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.constant(1 - self.offset)
        scale = self.offset + self.param('scale', init, x.shape[-1:])
        return (rms_normalise(x, self.epsilon) * scale).astype(self.dtype)


class RMSNorm1P(RMSNorm):
    """RMSNorm that keeps its scale less 1, so that weight decay draws it towards 1 (Gemma)."""

    offset: ClassVar[float] = 1.0


class LayerNorm(nn.Module):
    """Takes the mean off, then as RMSNorm (Ba et al. 2016, https://arxiv.org/abs/1607.06450)."""

    bias: bool = False
    dtype: jnp.dtype = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        y = rms_normalise(x - jnp.mean(x, axis=-1, keepdims=True), self.epsilon)
        y *= self.param('scale', nn.initializers.ones, x.shape[-1:])
        if self.bias:
            y += self.param('bias', nn.initializers.zeros, x.shape[-1:])
        return y.astype(self.dtype)


NORMS = {'rmsnorm': RMSNorm, 'rmsnorm_1p': RMSNorm1P, 'layernorm': LayerNorm}


def make_norm(config: ModelConfig, name: str | None = None) -> nn.Module:
    """Returns the config's norm; raises InputError if there is none of that name."""
    kind = lookup(NORMS, config.norm, 'config.model.norm')
    epsilon = config.norm_epsilon or kind.epsilon
    return kind(bias=config.bias, dtype=jnp.dtype(config.dtype), epsilon=epsilon, name=name)
