"""What dense layers multiply in while a model is trained: the table of `config.model.matmul`.

It is of the projections inside the layers: attention's queries, keys, values, gates and output, and the
MLP's matrices. Embeddings, the output matrix, heads, norms and attention's own products are never rounded.
Parameters stay float32, and so do the sums. Evaluation, generation and what is exported use the
parameters as they are (`lm.precision.plain`).
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import fp8_ops

# Flax's collection of what a gradient does not change but replaces.
HISTORIES = fp8_ops.OVERWRITE_WITH_GRADIENT
# Steps that a scale looks back on: few, to follow gradients that become smaller (as in the example of
# NVIDIA's Transformer Engine).
HISTORY = 16


def int8(module: nn.Module, x: jax.Array, kernel: jax.Array, backward: bool) -> jax.Array:
    """Returns float32 products of 8-bit integers: see `lm.layers.int8.product`."""
    from lm.layers.int8 import product  # Nothing else needs qwix.

    return product(x, kernel, module.inputs, backward)


def fp8(module: nn.Module, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns float32 products of 8-bit floats, with one scale for each array (Micikevicius et al. 2022).

    Both are rounded to e4m3, and so is the gradient to e5m2 (https://arxiv.org/abs/2209.05433); all three
    products are of such numbers. A scale brings the largest magnitude of the last `HISTORY` steps to the
    format's largest number, so that an array need not be read before it is rounded; what is larger now is
    clipped. Before the first step it is 1.

    Args:
        module: keeps `input`, `kernel` and `gradient`, float32 `[HISTORY]`, in the collection `HISTORIES`.
            Their "gradients" are what they are after the step.
        x: `[..., *inputs]`.
        kernel: `[*inputs, *outputs]`, float32.
    """
    shape = (HISTORY,)
    names = ('input', 'kernel', 'gradient')
    kept = [module.variable(HISTORIES, name, jnp.zeros, shape).value for name in names]
    one = jax.lax.convert_element_type(jnp.ones((1,)), kept[0].dtype)
    inputs = module.inputs
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    return fp8_ops.fp8_scaled_dot_general(
        x.astype(jnp.float32),
        kernel,
        (axes, ((), ())),
        preferred_element_type=jnp.float32,
        lhs_scale=one,
        rhs_scale=one,
        grad_scale=one,
        lhs_amax_history=kept[0],
        rhs_amax_history=kept[1],
        grad_amax_history=kept[2],
    )


@dataclasses.dataclass(frozen=True)
class Product:
    """How a dense layer multiplies.

    Attributes:
        function: `(module, x, kernel) -> float32` products; the module's `inputs` axes are contracted.
        native: whether a device has units for it. Others compute the same numbers, slower.
    """

    function: Callable[[nn.Module, jax.Array, jax.Array], jax.Array]
    native: Callable[[jax.Device], bool]


def _has_int8(device: jax.Device) -> bool:
    """NVIDIA's tensor cores since Turing, and TPUs since v4."""
    return _compute_capability(device) >= 7.5 or _tpu(device) >= 4


def _has_fp8(device: jax.Device) -> bool:
    """NVIDIA's tensor cores since Ada and Hopper, and TPUs since v7."""
    return _compute_capability(device) >= 8.9 or _tpu(device) >= 7


def _compute_capability(device: jax.Device) -> float:
    return float(getattr(device, 'compute_capability', 0)) if device.platform == 'gpu' else 0.0


def _tpu(device: jax.Device) -> int:
    """Returns the generation: 5 of 'TPU v5 lite', 7 of 'TPU7x', 0 of what is none."""
    digits = [c for c in device.device_kind if c.isdigit()]
    return int(digits[0]) if device.platform == 'tpu' else 0


# Values of `config.model.matmul`, besides 'same': products in `config.model.dtype`.
PRODUCTS = {
    'int8': Product(functools.partial(int8, backward=True), _has_int8),
    'int8_forward': Product(functools.partial(int8, backward=False), _has_int8),
    'fp8': Product(fp8, _has_fp8),
}
