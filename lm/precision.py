"""What a model's numbers are computed in, and what training keeps for that from step to step.

`config.model.dtype` is that of activations, and `config.model.matmul` what the layers' dense products are
rounded to before (`lm/layers/products.py`). Parameters are float32 in any case.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax.linen import fp8_ops

from lm.config import Config, ModelConfig, OptimizerConfig
from lm.errors import InputError, lookup
from lm.layers.products import PRODUCTS

# Values of `config.model.dtype`.
DTYPES = ('float32', 'bfloat16', 'float16')


class LossScale(NamedTuple):
    """What the loss is multiplied by, so that gradients do not vanish in float16.

    Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740.

    Attributes:
        scale: float32 []. Halved at an overflow, to 1 at least; doubled after so many good steps.
        good_steps: int32 [], since it was changed.
    """

    scale: jax.Array
    good_steps: jax.Array


@flax.struct.dataclass
class Precision:
    """What is kept between steps; of most precisions it is empty.

    Attributes:
        loss_scale: of float16; else an empty tuple.
        histories: of 'fp8', the largest magnitudes of the last steps by module, float32 `[..., HISTORY]`.
    """

    loss_scale: Any
    histories: Any


def check(model: ModelConfig) -> None:
    """Raises InputError if there is no such precision."""
    if model.dtype in PRODUCTS:
        raise InputError(
            f"config.model.dtype = '{model.dtype}' is not known. Did you mean config.model.matmul = "
            f"'{model.dtype}'?"
        )
    lookup(dict.fromkeys(DTYPES), model.dtype, 'config.model.dtype')
    if model.matmul != 'same':
        lookup(PRODUCTS | {'same': None}, model.matmul, 'config.model.matmul')
    if model.matmul == 'fp8' and model.dtype == 'float16':
        raise InputError(
            "config.model.matmul = 'fp8' has scales of its own, which a loss scale would upset: set "
            "config.model.dtype = 'bfloat16' (or 'float32')."
        )


def plain(config: Config) -> Config:
    """Returns the config of the same model without rounded products: to evaluate, to write, to export."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, matmul='same'))


def emulated(model: ModelConfig, device: jax.Device) -> str:
    """Returns a line for a person where a device has no units for `config.model.matmul`, or ''."""
    if model.matmul == 'same' or PRODUCTS[model.matmul].native(device):
        return ''
    return (
        f"config.model.matmul = '{model.matmul}' is emulated on {device.device_kind}: the numbers are the "
        'same, and slower to compute.'
    )


def first(options: OptimizerConfig, dtype: str, histories: Any) -> Precision:
    """Returns what is kept before the first step, given the shapes of the histories. Traceable."""
    scales = dtype == 'float16'
    return Precision(
        loss_scale=LossScale(jnp.float32(options.loss_scale), jnp.int32(0)) if scales else (),
        histories=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), histories),
    )


def scaled(loss: jax.Array, kept: Precision) -> jax.Array:
    """Returns what a gradient is taken of."""
    return loss * kept.loss_scale.scale if kept.loss_scale else loss


def unscaled(grads: Any, kept: Precision) -> Any:
    """Returns the gradient of the loss itself, given that of `scaled`."""
    if not kept.loss_scale:
        return grads
    return jax.tree.map(lambda g: g / kept.loss_scale.scale, grads)


def recovers(kept: Precision) -> jax.Array:
    """Returns whether a smaller loss scale is to be tried before a bad step counts as one, bool []."""
    return kept.loss_scale.scale > 1 if kept.loss_scale else jnp.bool_(False)


def after(kept: Precision, histories: Any, finite: jax.Array, every: int) -> Precision:
    """Returns what is kept after a step.

    Args:
        kept: before it.
        histories: those that the step gave.
        finite: whether the step was taken: bool [].
        every: good steps after which the loss scale is doubled.
    """
    loss_scale = kept.loss_scale
    if loss_scale:
        good = jnp.where(finite, loss_scale.good_steps + 1, 0)
        grows = good == every
        largest = jnp.finfo(jnp.float32).max
        up = jnp.where(grows, jnp.minimum(2 * loss_scale.scale, largest), loss_scale.scale)
        scale = jnp.where(finite, up, jnp.maximum(loss_scale.scale / 2, 1))
        loss_scale = LossScale(scale, jnp.where(grows, 0, good))
    histories = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), histories, kept.histories
    )
    return Precision(loss_scale, histories)


def marked(histories: Any) -> Any:
    """Returns histories of a type that says to JAX how two gradients of one are joined: by their maximum.

    There are two where layers share a module, or a step calls the model twice.
    """
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, fp8_ops.fm32), histories)


def used(new: Any, old: Any) -> Any:
    """Returns new histories; the old ones of modules that a step did not call, whose gradient is 0."""
    return jax.tree.map(
        lambda a, b: jnp.where(jnp.any(a != 0, axis=-1, keepdims=True), a, b), new, old
    )
