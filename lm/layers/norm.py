"""Normalisation over the last axis. Statistics are float32 in every compute dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def rms_normalise(x: jax.Array, eps: float) -> jax.Array:
    """Returns float32 `x / sqrt(mean(x^2) + eps)`."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


class RMSNorm(nn.Module):
    """Divides by the root mean square (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    bias: bool = False  # Has none; the norms of the table are built alike.
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
        return (rms_normalise(x, 1e-6) * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """Takes the mean off, then as RMSNorm (Ba et al. 2016, https://arxiv.org/abs/1607.06450)."""

    bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        y = rms_normalise(x - jnp.mean(x, axis=-1, keepdims=True), 1e-5)
        y *= self.param('scale', nn.initializers.ones, x.shape[-1:])
        if self.bias:
            y += self.param('bias', nn.initializers.zeros, x.shape[-1:])
        return y.astype(self.dtype)


NORMS = {'rmsnorm': RMSNorm, 'layernorm': LayerNorm}
