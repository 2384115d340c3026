"""What losses are made of: terms, and what models are asked for them."""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm import tree
from lm.layers.products import HISTORIES
from lm.models import Model

Batch = dict[str, jax.Array]
Sums = dict[str, dict[str, jax.Array]]


class Trained(NamedTuple):
    """What a step takes the gradient of, in the place of parameters alone.

    Attributes:
        params: the parameters.
        histories: what `lm.layers.products` keeps, replaced by its "gradient"; `{}` where it keeps nothing.
    """

    params: Any
    histories: Any


@dataclasses.dataclass(frozen=True)
class Loss:
    """The terms of a loss.

    Attributes:
        sums: `(params, batch, rng) -> {term: {'loss': sum to be minimised, name: sum to be reported}}`, of
            parameters or of `Trained`. Without an rng it is the loss of evaluation: no dropout, no label
            smoothing, no z-loss.
        weights: `batch -> {term: weight}`, float32 scalars.
        coefficients: of the terms. The first is the main one, which perplexity is of.
        tasks: those that it is a sum of; a batch is then `{task: fields}` of some or all of them. A
            task's main term has its name, the others are `TASK/TERM`.
    """

    sums: Callable[[Any, Batch, jax.Array | None], Sums]
    weights: Callable[[Batch], dict[str, jax.Array]]
    coefficients: dict[str, float]
    tasks: tuple[str, ...] = ()

    @property
    def main(self) -> str:
        """The first term; '' where each task has one."""
        return '' if self.tasks else next(iter(self.coefficients))


def joined(parts: dict[str, Loss]) -> Loss:
    """Returns the loss of several tasks, of those that a batch has."""

    def name(task: str, term: str) -> str:
        return task if term == parts[task].main else f'{task}/{term}'

    def of_each(function: Callable[[str, Batch], dict[str, Any]], batch: dict[str, Batch]) -> Any:
        return {
            name(task, term): value
            for task in parts
            if task in batch
            for term, value in function(task, batch[task]).items()
        }

    def sums(params: Any, batch: dict[str, Batch], rng: jax.Array | None) -> Sums:
        keys = (
            {task: jax.random.fold_in(rng, i) for i, task in enumerate(parts)}
            if rng is not None
            else {}
        )
        return of_each(lambda task, part: parts[task].sums(params, part, keys.get(task)), batch)

    def weights(batch: dict[str, Batch]) -> dict[str, jax.Array]:
        return of_each(lambda task, part: parts[task].weights(part), batch)

    coefficients = {
        name(task, term): c for task, loss in parts.items() for term, c in loss.coefficients.items()
    }
    return Loss(sums, weights, coefficients, tuple(parts))


def flat(sums: Sums, main: str) -> dict[str, jax.Array]:
    """Returns `{NAME: sum}` of the main term, and `{TERM/NAME: sum}` of the others."""
    return {
        name if term == main else f'{term}/{name}': value
        for term, found in sums.items()
        for name, value in found.items()
    }


# Fields of a batch that models take, besides `inputs`.
_FACTS = (
    'positions',
    'token_types',
    'in_prefix',
    'order',
    'encoder_inputs',
    'encoder_positions',
    'encoder_segment_ids',
)


def hidden(
    model: Model,
    params: Any,
    batch: Batch,
    rng: jax.Array | None,
    segments: bool,
    **options: Any,
) -> tuple[jax.Array, Sums]:
    """Returns `[B, T, D]`, and where the model has experts the sums of their term.

    Args:
        model: any.
        params: its parameters, or `Trained`.
        batch: of the batch contract.
        rng: for dropout; None is without.
        segments: whether rows hold more than one text, or padding that tokens would see.
        **options: of the model's `hidden`.
    """
    facts = {name: batch[name] for name in _FACTS if name in batch}
    histories = params.histories if isinstance(params, Trained) else {}
    mixed = model.config.experts > 0  # Padding is not to be routed.
    vectors, sown = model.apply(
        {'params': parameters(params), HISTORIES: histories},
        batch['inputs'],
        segment_ids=batch['segment_ids'] if segments or mixed else None,
        deterministic=rng is None,
        rngs=None if rng is None else {'dropout': rng},
        method='hidden',
        mutable=['experts'] if mixed else [],
        **facts,
        **options,
    )
    return vectors, {'experts': experts_sums(sown['experts'])} if mixed and sown else {}


def experts_sums(sown: Any) -> dict[str, jax.Array]:
    """Returns what each layer's `lm.layers.moe.statistics` come to, by name."""
    found: dict[str, list[jax.Array]] = collections.defaultdict(list)
    for path, leaf in zip(tree.paths(sown), jax.tree.leaves(sown), strict=True):
        found[path.rpartition('/')[2]].append(leaf.reshape(-1))
    each = {name: jnp.concatenate(leaves) for name, leaves in found.items()}  # [layers]
    tokens = each.pop('tokens')
    worst = jnp.sum(tokens) * jnp.max(each['load'] / jnp.maximum(tokens, 1.0))
    return {name: jnp.sum(values) for name, values in each.items()} | {'worst_load': worst}


def parameters(params: Any) -> Any:
    """Returns the parameters alone."""
    return params.params if isinstance(params, Trained) else params


def pick(
    vectors: jax.Array, batch: Batch, names: tuple[str, str], most: int
) -> tuple[jax.Array, Batch]:
    """Returns what a prediction is made of: vectors `[B, P, D]`, and their fields `[B, P]`.

    Args:
        vectors: `[B, T, D]`.
        batch: fields `[B, T]`.
        names: of targets and of their weights.
        most: P, at least as many as any row has of weights above 0.
    """
    if most >= vectors.shape[1]:
        return vectors, {name: batch[name] for name in names}
    return take(vectors, batch, names, places(batch[names[1]], most))


def take(
    vectors: jax.Array, batch: Batch, names: tuple[str, ...], places: jax.Array
) -> tuple[jax.Array, Batch]:
    """Returns the vectors and fields at places, int `[B, P]`."""
    fields = {name: jnp.take_along_axis(batch[name], places, axis=1) for name in names}
    return jnp.take_along_axis(vectors, places[..., None], axis=1), fields


def places(weights: jax.Array, most: int) -> jax.Array:
    """Returns where weights are above 0, int `[B, P]`; and of rows with fewer, other places too."""
    return jax.lax.top_k((weights > 0).astype(jnp.float32), min(most, weights.shape[1]))[1]


def head(model: Model, params: Any, name: str, rng: jax.Array | None):
    """Returns `vectors -> predictions` of a head."""
    return functools.partial(
        model.apply,
        {'params': parameters(params)},
        name=name,
        deterministic=rng is None,
        rngs=None if rng is None else {'dropout': jax.random.fold_in(rng, 1)},
        method='predict',
    )


def own(task: str, head: str) -> str:
    """Returns the name of a task's head; all tasks share `tokens`."""
    return f'{task}_{head}' if task and head != 'tokens' else head
