"""Losses of whole texts: a class, a value, the partner of a pair."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lm import losses
from lm.config import Config
from lm.models import Model
from lm.terms.loss import Batch, Loss, Sums, head, hidden, own, pick


def classified(model: Model, config: Config, device_mesh: Mesh, task: str) -> Loss:
    """Returns the cross-entropy of a class, nats a text, from its first token's vector."""

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        vectors, others = hidden(model, params, batch, rng, segments=True)
        picked, fields = pick(vectors, batch, ('labels', 'label_weights'), 1)
        logits = head(model, params, own(task, 'label'), rng)(picked)
        total, _, metrics = losses.cross_entropy(logits, *fields.values())
        return {'label': {'loss': total} | metrics} | others

    return Loss(sums, _label_weight, {'label': 1.0})


def regressed(model: Model, config: Config, device_mesh: Mesh, task: str) -> Loss:
    """Returns the squared error of a value, from the text's first token's vector.

    Its sums are also those that Pearson's correlation is made of: of x (what is predicted), y, and their
    products.
    """

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        vectors, others = hidden(model, params, batch, rng, segments=True)
        picked, fields = pick(vectors, batch, ('label_values', 'label_weights'), 1)
        x = head(model, params, own(task, 'label'), rng)(picked)[..., 0]  # [B, 1]
        y, weight = fields.values()
        products = {'x': x, 'y': y, 'xx': x * x, 'yy': y * y, 'xy': x * y}
        error = jnp.sum(weight * (x - y) ** 2)
        metrics = {name: jnp.sum(weight * value) for name, value in products.items()}
        metrics = jax.lax.stop_gradient({'error': error} | metrics)
        return {'label': {'loss': error} | metrics} | others

    return Loss(sums, _label_weight, {'label': 1.0})


def contrasted(model: Model, config: Config, device_mesh: Mesh, task: str) -> Loss:
    """Returns the cross-entropy of a pair's second text among those of the batch, nats a pair.

    Vectors of texts are means over their tokens, compared by their cosine (Gao et al. 2021,
    https://arxiv.org/abs/2104.08821). With gradient accumulation a batch is a micro-batch.
    """

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        there = batch['segment_ids'] > 0
        second = there & (batch['token_types'] > 0)
        # Each text has a row's place 0, and sees itself only.
        start = jnp.sum(there & ~second, axis=1, keepdims=True)
        alone = {
            'inputs': batch['inputs'],
            'segment_ids': there.astype(jnp.int32) + second,
            'positions': batch['positions'] - jnp.where(second, start, 0),
        }
        vectors, others = hidden(model, params, alone, rng, segments=True)
        which = jnp.stack([there & ~second, second], axis=1).astype(jnp.float32)  # [B, 2, T]
        texts = jnp.einsum('bst,btd->sbd', which, vectors.astype(jnp.float32))
        texts /= jnp.linalg.norm(texts, axis=-1, keepdims=True) + 1e-6  # [2, B, D]
        weights = jnp.sum(batch['label_weights'], axis=1)  # [B]
        logits = texts[0] @ texts[1].T / config.objective.similarity_temperature
        logits = jnp.where(weights > 0, logits, -1e9)  # Rows that fill a batch are no choice.
        total, _, metrics = losses.cross_entropy(logits, jnp.arange(len(weights)), weights)
        return {'label': {'loss': total} | metrics} | others

    return Loss(sums, _label_weight, {'label': 1.0})


def _label_weight(batch: Batch) -> dict[str, jax.Array]:
    return {'label': jnp.sum(batch['label_weights'])}
