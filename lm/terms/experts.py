"""What experts add to a loss: even loads, small logits of routers; and how their loads are.

A term of its own, `experts`: sums over tokens and layers, divided by how many there are of both. The main
term is as it is without experts, and so is perplexity.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lm.config import Config, ModelConfig
from lm.terms.loss import Batch, Loss

TERM = 'experts'


def is_of(name: str) -> bool:
    """Returns whether a metric is of the term: `experts/load`, or `TASK/experts/load`."""
    return name.split('/')[-2:-1] == [TERM]


def added(loss: Loss, config: Config, streams: bool) -> Loss:
    """Returns the loss with the term of experts, whose sums it has already, where a model has experts.

    Args:
        loss: of a config.
        config: the run's.
        streams: tokens go through the model twice, for a permutation.
    """
    model, times = config.model, 2 if streams else 1
    if not model.experts:
        return loss

    def weights(batch: Batch) -> dict[str, jax.Array]:
        total = times * _layers(model, model.num_layers) * _count(batch['segment_ids'])
        if 'encoder_segment_ids' in batch:
            depth = model.encoder_layers or model.num_layers
            total += _layers(model, depth) * _count(batch['encoder_segment_ids'])
        return loss.weights(batch) | {TERM: total}

    # The mean over layers, times them: each layer's own loss counts.
    depth = _layers(model, model.num_layers)
    if model.architecture == 'encoder_decoder':
        depth += _layers(model, model.encoder_layers or model.num_layers)
    return dataclasses.replace(
        loss, weights=weights, coefficients=loss.coefficients | {TERM: float(depth)}
    )


def _layers(model: ModelConfig, count: int) -> int:
    """Returns how many of so many layers have experts."""
    return count // model.expert_every


def _count(segments: jax.Array) -> jax.Array:
    return jnp.sum(segments > 0).astype(jnp.float32)
