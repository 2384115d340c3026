"""Tokens and absolute positions to vectors, and vectors back to tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.layers.dense import STDDEV, float32_product


class Embed(nn.Module):
    """A table of vectors `[V, D]`.

    Attributes:
        size: V, how many.
        features: D.
        dtype: of the result.
    """

    size: int
    features: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.embedding = self.param(
            'embedding', nn.initializers.normal(STDDEV), (self.size, self.features)
        )

    def __call__(self, indices: jax.Array) -> jax.Array:
        """Returns rows: int `[...] -> [..., D]`. An index past the end takes the last row."""
        return jnp.take(self.embedding, indices, axis=0, mode='clip').astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """Returns the products with every row, float32: `[..., D] -> [..., V]`."""
        return float32_product(x, self.embedding.T, self.dtype)


def sinusoids(positions: jax.Array, features: int) -> jax.Array:
    """Returns `[..., D]`: sines, then cosines, of wavelengths 2 pi to 20000 pi (Vaswani et al. 2017).

    Args:
        positions: int `[...]`.
        features: D. Even, or one cosine is left out.
    """
    pairs = -(-features // 2)
    frequencies = 10_000.0 ** (-np.arange(pairs, dtype=np.float32) / pairs)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[..., :features]
