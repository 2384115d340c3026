"""The feed-forward part of a layer, plain or gated."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.errors import lookup
from lm.layers.dense import Dense


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function, and whether it gates a second projection."""

    function: Callable[[jax.Array], jax.Array]
    gated: bool


gelu = functools.partial(jax.nn.gelu, approximate=True)  # the tanh form, as in GPT-2
gelu_exact = functools.partial(jax.nn.gelu, approximate=False)  # with erf, as in BERT

# Gated: Shazeer 2020, https://arxiv.org/abs/2002.05202.
ACTIVATIONS = {
    'gelu': Activation(gelu, gated=False),
    'gelu_exact': Activation(gelu_exact, gated=False),
    'silu': Activation(jax.nn.silu, gated=False),
    'relu': Activation(jax.nn.relu, gated=False),
    'swiglu': Activation(jax.nn.silu, gated=True),
    'geglu': Activation(gelu, gated=True),
}


def activation(config: ModelConfig) -> Activation:
    """Returns the config's entry of the table; raises InputError if there is none."""
    return lookup(ACTIVATIONS, config.activation, 'config.model.activation')


def mlp_dim(config: ModelConfig) -> int:
    """Returns F: as configured; by default 4 D, or 8/3 D rounded up to 64 if gated.

    Three matrices of 8/3 D have as many parameters as two of 4 D.
    """
    if config.mlp_dim:
        return config.mlp_dim
    if activation(config).gated:
        return -(-8 * config.embed_dim // (3 * 64)) * 64
    return 4 * config.embed_dim


class MLP(nn.Module):
    """`down(f(up(x)))`, or `down(f(gate(x)) * up(x))` if gated: `[B, T, D] -> [B, T, D]`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        dense = functools.partial(Dense, bias=c.bias, dtype=jnp.dtype(c.dtype), matmul=c.matmul)
        kind = activation(c)
        width = (mlp_dim(c),)
        h = dense(width, name='up')(x)  # [B, T, F]
        if kind.gated:
            h *= activate(kind.function, dense(width, name='gate')(x))
        else:
            h = activate(kind.function, h)
        # 1/sqrt(2N): the residual stream is a sum of 2N such outputs (GPT-2).
        return dense((c.embed_dim,), scale=(2 * c.num_layers) ** -0.5, name='down')(h)


def activate(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns `function(x)`, computed in float32.

    In 16 bits the backward pass computes it again: what it would keep is larger than `x`, and each piece
    would be rounded.
    """
    if x.dtype == jnp.float32:
        return function(x)
    return jax.checkpoint(lambda x: function(x.astype(jnp.float32)).astype(x.dtype))(x)
