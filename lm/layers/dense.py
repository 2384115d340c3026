"""The one matrix product of the layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm import matmul
from lm.layers.products import PRODUCTS

# What policies of rematerialisation know the results of dense layers by, in the dtype that they have.
PRODUCT = 'product'
STDDEV = 0.02  # Of initial weights, as in GPT-2.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def affine(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    inputs: int = 1,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Returns `x` with its last `inputs` axes contracted with the first of `kernel`, plus `bias`.

    The kernel is used in the dtype of `x`. Sums are float32, and so are the gradients of kernel and bias.

    Args:
        x: `[..., *inputs]`, float32 or 16 bits.
        kernel: `[*inputs, *outputs]`, float32.
        bias: `[*outputs]`, float32, or None.
        inputs: how many axes are contracted.
        dtype: of the result; None is that of `x`.
    """
    return _forward(x, kernel, bias, inputs, dtype)[0]


def _forward(x, kernel, bias, inputs, dtype):
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    y = matmul.dot(x, kernel.astype(x.dtype), axes)
    if bias is not None:
        y += bias
    return y.astype(dtype or x.dtype), (x, kernel, bias)


def _backward(inputs, dtype, residuals, gradient):
    x, kernel, bias = residuals
    gradient = gradient.astype(x.dtype)
    batch = x.ndim - inputs
    outputs = tuple(range(batch, gradient.ndim)), tuple(range(inputs, kernel.ndim))
    d_x = matmul.dot(gradient, kernel.astype(x.dtype), outputs).astype(x.dtype)
    d_kernel = matmul.outer(x, gradient, batch).astype(kernel.dtype)
    d_bias = None if bias is None else matmul.total(gradient, batch).astype(bias.dtype)
    return d_x, d_kernel, d_bias


affine.defvjp(_forward, _backward)


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
        matmul: what the operands are rounded to before, of `PRODUCTS`; 'same': they have the dtype.
    """

    features: tuple[int, ...]
    inputs: int = 1
    bias: bool = False
    scale: float = 1.0
    dtype: jnp.dtype = jnp.float32
    matmul: str = 'same'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(STDDEV * self.scale)
        kernel = self.param('kernel', init, x.shape[-self.inputs :] + self.features)
        bias = self.param('bias', nn.initializers.zeros, self.features) if self.bias else None
        x = x.astype(self.dtype)
        if self.matmul == 'same':
            return checkpoint_name(affine(x, kernel, bias, self.inputs), PRODUCT)
        y = PRODUCTS[self.matmul].function(self, x, kernel)
        return checkpoint_name((y if bias is None else y + bias).astype(self.dtype), PRODUCT)
