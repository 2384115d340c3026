"""The one matrix product of the layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

STDDEV = 0.02  # Of initial weights, as in GPT-2.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
    """Returns `x` with its last `inputs` axes contracted with the first of `kernel`."""
    return _plain_product(x, kernel, inputs)


def _plain_product(x, kernel, inputs):
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    return jax.lax.dot_general(x, kernel, (axes, ((), ())))


def _product_forward(x, kernel, inputs):
    # Not `product`: policies of rematerialisation look for dot_general, and would not see into it.
    return _plain_product(x, kernel, inputs), (x, kernel)


def _product_backward(inputs, residuals, gradient):
    """The two products of the gradient.

    On CPU XLA fuses the element-wise operations that make `x` and `gradient` into a strided transpose
    of each product's own; a barrier keeps them apart, and takes a fifth to a quarter off the step.
    """
    x, kernel = residuals
    if jax.default_backend() == 'cpu':
        x, gradient = jax.lax.optimization_barrier((x, gradient))
    batch = tuple(range(x.ndim - inputs))
    outputs = tuple(range(len(batch), gradient.ndim)), tuple(range(inputs, kernel.ndim))
    return (
        jax.lax.dot_general(gradient, kernel, (outputs, ((), ()))),
        jax.lax.dot_general(x, gradient, ((batch, batch), ((), ()))),
    )


product.defvjp(_product_forward, _product_backward)


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
        y = product(x.astype(self.dtype), kernel.astype(self.dtype), self.inputs)
        if self.bias:
            y += self.param('bias', nn.initializers.zeros, self.features).astype(self.dtype)
        return y


def float32_product(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns `x kernel` in float32, of operands in `dtype`: `[..., D] [D, V] -> [..., V]`."""
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)
