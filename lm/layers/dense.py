"""The one matrix product of the layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

STDDEV = 0.02  # Of initial weights, as in GPT-2.


class Dense(nn.Module):
    """Contracts the last `inputs` axes with a kernel, and puts `features` in their place.

    `Dense((H, K))` takes `[B, T, D]` to `[B, T, H, K]` with a kernel `[D, H, K]`;
    `Dense((D,), inputs=2)` takes it back with a kernel `[H, K, D]`. Parameters are float32.

    Attributes:
        features: sizes of the new axes.
        inputs: how many axes are contracted.
        bias: adds a bias of shape `features`.
        scale: initial weights are normal, of standard deviation 0.02 times this.
        dtype: of the product and the result.
    """

    features: tuple[int, ...]
    inputs: int = 1
    bias: bool = False
    scale: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-self.inputs :] + self.features
        kernel = self.param('kernel', nn.initializers.normal(STDDEV * self.scale), shape)
        axes = tuple(range(x.ndim - self.inputs, x.ndim)), tuple(range(self.inputs))
        y = jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (axes, ((), ())))
        if self.bias:
            y += self.param('bias', nn.initializers.zeros, self.features).astype(self.dtype)
        return y


def float32_product(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns `x kernel` in float32, of operands in `dtype`: `[..., D] [D, V] -> [..., V]`."""
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)
