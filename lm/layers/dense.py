"""The one matrix product of the layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import matmul

STDDEV = 0.02  # Of initial weights, as in GPT-2.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(
    x: jax.Array, kernel: jax.Array, inputs: int = 1, dtype: jnp.dtype | None = None
) -> jax.Array:
    """Returns `x` with its last `inputs` axes contracted with the first of `kernel`.

    The kernel is used in the dtype of `x`; sums are float32, and its gradient keeps them.

    Args:
        x: `[..., *inputs]`, float32 or bfloat16.
        kernel: `[*inputs, *outputs]`, float32.
        inputs: how many axes are contracted.
        dtype: of the result; None is that of `x`.
    """
    return _forward(x, kernel, inputs, dtype)[0]


def _forward(x, kernel, inputs, dtype):
    # Not `product`: policies of rematerialisation look for dot_general, and would not see into it.
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    y = matmul.dot(x, kernel.astype(x.dtype), axes)
    return y.astype(dtype or x.dtype), (x, kernel)


def _backward(inputs, dtype, residuals, gradient):
    x, kernel = residuals
    gradient = gradient.astype(x.dtype)
    batch = x.ndim - inputs
    outputs = tuple(range(batch, gradient.ndim)), tuple(range(inputs, kernel.ndim))
    d_x = matmul.dot(gradient, kernel.astype(x.dtype), outputs).astype(x.dtype)
    return d_x, matmul.outer(x, gradient, batch).astype(kernel.dtype)


product.defvjp(_forward, _backward)


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
        y = product(x.astype(self.dtype), kernel, self.inputs)
        if self.bias:
            y += self.param('bias', nn.initializers.zeros, self.features).astype(self.dtype)
        return y
