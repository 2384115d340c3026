"""From gradients to updates: optax's algorithms by name, one learning-rate schedule, decay by path.

Every algorithm is used in the same way: optax's own factory with a learning rate of 1 gives a
direction, decoupled weight decay is added to it, and the schedule scales the sum. So weight decay means
the same for all of them (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101): each step takes
`learning_rate * weight_decay` of a weight away.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from lm import tree
from lm.config import OptimizerConfig, ScheduleConfig
from lm.errors import InputError, lookup, nearest


def _inverse_sqrt(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """1 / sqrt(step), as in the 2017 Transformer; continuous with the end of the warm-up."""
    warmup = max(config.warmup_steps, 1)
    return lambda step: jnp.sqrt(warmup / (warmup + step))


def _wsd(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """Warm-up, stable, decay (https://arxiv.org/abs/2404.06395), the decay linear."""
    decay = max(1, round(steps * config.decay_fraction))
    return optax.join_schedules(
        [optax.constant_schedule(1.0), optax.linear_schedule(1.0, config.final_scale, decay)],
        [steps - decay],
    )


# Kind -> the schedule after the warm-up, as a part of the peak, over so many steps.
SCHEDULES: dict[str, Callable[[ScheduleConfig, int], optax.Schedule]] = {
    'constant': lambda c, n: optax.constant_schedule(1.0),
    'cosine': lambda c, n: optax.cosine_decay_schedule(1.0, n, alpha=c.final_scale),
    'linear': lambda c, n: optax.linear_schedule(1.0, c.final_scale, n),
    'polynomial': lambda c, n: optax.polynomial_schedule(1.0, c.final_scale, c.power, n),
    'exponential': lambda c, n: optax.exponential_decay(1.0, n, c.final_scale),
    'inverse_sqrt': _inverse_sqrt,
    'wsd': _wsd,
}


def schedule(config: ScheduleConfig, peak: float, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    The warm-up rises linearly and reaches the peak at its last step; its first step is not zero.

    Args:
        config: kind and shape.
        peak: the highest learning rate.
        steps: the number of steps of the run.

    Raises:
        InputError: an unknown kind, a warm-up longer than the run, or an exponential decay to 0.
    """
    kind = lookup(SCHEDULES, config.kind, 'config.schedule.kind')
    if config.warmup_steps > steps:
        raise InputError(
            f'config.schedule.warmup_steps = {config.warmup_steps} is more than '
            f'config.train.steps = {steps}.'
        )
    if config.kind == 'exponential' and config.final_scale <= 0:
        raise InputError("config.schedule.final_scale must be above 0 for kind 'exponential'.")
    decay = kind(config, max(1, steps - config.warmup_steps))

    def learning_rate(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum(1.0, (step + 1) / max(1, config.warmup_steps))
        return peak * warmup * decay(jnp.maximum(0.0, step - config.warmup_steps))

    return learning_rate


def _muon_matrices(params: Any) -> Any:
    """Says to Muon which axes of each layer's kernels form a matrix; all else goes to Adam."""
    rules = (
        # [N, D, H, K]
        (r'layers/.*attention/(query|key|value|gate|relative)/kernel$', ((1,), (2, 3))),
        (r'layers/.*attention/out/kernel$', ((1, 2), (3,))),  # [N, H, K, D]
        (r'mlp/router/kernel$', None),
        (r'layers/.*mlp/experts/\w+/kernel$', ((2,), (3,))),  # [N, E, D, F]
        (r'layers/.*mlp/\w+/kernel$', ((1,), (2,))),  # [N, D, F]
        (r'', None),
    )

    def numbers(path: str, leaf: Any) -> Any:
        axes = tree.first_match(rules, path)
        return axes and optax.contrib.MuonDimensionNumbers(*axes)

    return tree.map_with_path(numbers, params)


# Name -> the arguments that our keys stand for in optax's factory; `options` may override them.
OPTIMIZERS: dict[str, Callable[[OptimizerConfig], dict[str, Any]]] = {
    'adamw': lambda c: {'b1': c.b1, 'b2': c.b2, 'eps': c.eps, 'weight_decay': 0.0},
    'lion': lambda c: {'b1': c.b1, 'b2': c.b2, 'weight_decay': 0.0},
    'adafactor': lambda c: {},
    'sgd': lambda c: {'momentum': c.b1 or None},
    # `consistent_rms` gives Muon's updates the size of Adam's (https://arxiv.org/abs/2502.16982), so
    # that one learning rate and one decay serve both.
    'muon': lambda c: {
        'beta': c.b1,
        'adam_b1': c.b1,
        'adam_b2': c.b2,
        'eps': c.eps,
        'consistent_rms': 0.2,
        'muon_weight_dimension_numbers': _muon_matrices,
    },
}


def _factory(name: str) -> Callable[..., optax.GradientTransformation]:
    for module in (optax, optax.contrib):
        found = getattr(module, name, None)
        if callable(found) and 'learning_rate' in inspect.signature(found).parameters:
            return found
    names = [
        n
        for module in (optax, optax.contrib)
        for n, f in inspect.getmembers(module, inspect.isfunction)
        if 'learning_rate' in inspect.signature(f).parameters
    ]
    raise InputError(
        f"config.optimizer.name = '{name}' is not an optimizer of optax.{nearest(name, names)}"
    )


def build(config: OptimizerConfig, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns the whole chain: clipping, the algorithm, weight decay by path, the schedule.

    Args:
        config: the algorithm by name, and its numbers.
        learning_rate: learning rate by step; steps that were skipped do not count.

    Raises:
        InputError: an unknown name, or an option that optax's factory does not take.
    """
    try:
        decays = re.compile(config.decay_paths)
    except re.error as error:
        raise InputError(
            f"config.optimizer.decay_paths = '{config.decay_paths}' is not a regular expression: {error}."
        ) from None
    factory = _factory(config.name)
    known = inspect.signature(factory).parameters
    if config.name in OPTIMIZERS:
        arguments = OPTIMIZERS[config.name](config)
    else:
        ours = {'b1': config.b1, 'b2': config.b2, 'eps': config.eps, 'weight_decay': 0.0}
        arguments = {name: value for name, value in ours.items() if name in known}
    arguments |= dict(config.options)
    for option in arguments:
        if option not in known:
            raise InputError(
                f"config.optimizer.options.{option} is not an argument of optax's {config.name}."
                f'{nearest(option, known)}'
            )
    algorithm = factory(**arguments | {'learning_rate': 1.0})
    try:  # Some want more than a gradient, such as the loss or a line search.
        weights = {'w': jnp.ones((2, 2))}
        jax.eval_shape(lambda w: algorithm.update(w, algorithm.init(w), w), weights)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"config.optimizer.name = '{config.name}' cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        algorithm,
        optax.add_decayed_weights(
            -config.weight_decay, mask=lambda params: tree.matches(decays.pattern, params)
        ),
        optax.scale_by_schedule(learning_rate),
    )
