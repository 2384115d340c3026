"""Tokens and absolute positions to vectors, and vectors back to tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import matmul
from lm.layers.dense import STDDEV, affine
from lm.mesh import constrain


class Embed(nn.Module):
    """A table of vectors `[V, D]`.

    Attributes:
        size: V, how many.
        features: D.
        dtype: of the result.
        split: the mesh axis that splits V.
    """

    size: int
    features: int
    dtype: jnp.dtype = jnp.float32
    split: str | None = None

    def setup(self):
        self.embedding = self.param(
            'embedding', nn.initializers.normal(STDDEV), (self.size, self.features)
        )

    def __call__(self, indices: jax.Array) -> jax.Array:
        """Returns rows: int `[...] -> [..., D]`. An index past the end takes the last row."""
        # Gathered over `fsdp` first, as every parameter is where it is used: XLA would otherwise
        # split the result along D, and move all of it to where its rows belong.
        table = constrain(self.embedding, (self.split, None))
        return jnp.take(table, indices, axis=0, mode='clip').astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """Returns the products with every row, float32: `[..., D] -> [..., V]`."""
        x = x.astype(self.dtype)
        # [B, D] is a step of decoding; the gradient of a batch, however small, is taken by `affine`.
        if x.ndim == 2 and matmul.few(x):
            return matmul.with_rows(x, self.embedding.astype(self.dtype))
        return affine(x, self.embedding.T, dtype=jnp.float32)


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
