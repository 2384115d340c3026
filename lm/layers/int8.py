"""Dense products of 8-bit integers, by qwix (https://github.com/google/qwix)."""

import functools

import jax
import jax.numpy as jnp
import qwix

from lm import matmul


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x: jax.Array, kernel: jax.Array, inputs: int, backward: bool) -> jax.Array:
    """Returns float32 products of 8-bit integers, summed as 32-bit integers.

    Each token has a scale of its own, and so has each output: the largest magnitude becomes 127. Gradients
    pass rounding as if it were not there.

    Args:
        x: `[..., *inputs]`.
        kernel: `[*inputs, *outputs]`, float32.
        inputs: how many axes are contracted.
        backward: the gradient of `x` is computed in the same way, from the rounded kernel. That of the
            kernel is not rounded ever: it sums over all tokens, where such noise does harm (SwitchBack:
            Wortsman et al. 2023, https://arxiv.org/abs/2304.13013).
    """
    return _forward(x, kernel, inputs, backward)[0]


def _forward(x, kernel, inputs, backward):
    outputs = range(inputs, kernel.ndim)
    small = qwix.quantize(kernel, jnp.int8, channelwise_axes=outputs)
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    y = qwix.dot_general(_rows(x, x.ndim - inputs), small, (axes, ((), ())))
    return y, (x, kernel, small if backward else None)


def _backward(inputs, backward, residuals, gradient):
    x, kernel, small = residuals
    batch = x.ndim - inputs
    axes = tuple(range(batch, gradient.ndim)), tuple(range(inputs, kernel.ndim))
    if (
        backward
    ):  # The kernel's scales are of axes that are summed over here: the gradient takes them.
        scaled = gradient * small.scale.reshape(kernel.shape[inputs:])
        d_x = qwix.dot_general(_rows(scaled, batch), small.qvalue, (axes, ((), ())))
    else:
        d_x = matmul.dot(gradient.astype(x.dtype), kernel.astype(x.dtype), axes)
    d_kernel = matmul.outer(x, gradient.astype(x.dtype), batch)
    return d_x.astype(x.dtype), d_kernel


product.defvjp(_forward, _backward)


def _rows(x: jax.Array, batch: int) -> qwix.QArray:
    """Returns `x` in 8 bits, with a scale for each index of the first `batch` axes."""
    return qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=range(batch))
