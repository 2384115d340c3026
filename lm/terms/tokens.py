"""Losses of tokens: the next one, hidden ones, replaced ones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lm import losses, mesh
from lm.config import Config
from lm.models import Model
from lm.objectives import OBJECTIVES
from lm.terms.loss import Batch, Loss, Sums, head, hidden, own, parameters, pick, places, take


def next_token(model: Model, config: Config, device_mesh: Mesh, task: str) -> Loss:
    """Returns the cross-entropy of next tokens, of decoders and encoder-decoders."""
    segments = config.data.packing or config.model.architecture != 'decoder'

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        vectors, others = hidden(model, params, batch, rng, segments)
        logits = functools.partial(model.apply, {'params': parameters(params)}, method='logits')
        found = _cross_entropy(logits, vectors, batch, rng, model, config, device_mesh)
        return {'tokens': found} | others

    return Loss(sums, lambda batch: {'tokens': jnp.sum(batch['loss_weights'])}, {'tokens': 1.0})


def masked(model: Model, config: Config, device_mesh: Mesh, task: str) -> Loss:
    """Returns the cross-entropy of masked tokens, of encoders, and that of a pair's label."""
    most = _most_predictions(config, device_mesh)
    pairs = bool(config.objective.pairs) and config.objective.name == 'masked'

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        vectors, others = hidden(model, params, batch, rng, segments=True)
        picked, fields = pick(vectors, batch, ('targets', 'loss_weights'), most)
        logits = head(model, params, 'tokens', rng)
        found = {'tokens': _cross_entropy(logits, picked, fields, rng, model, config, device_mesh)}
        if pairs:
            picked, fields = pick(vectors, batch, ('labels', 'label_weights'), 1)
            logits = head(model, params, own(task, 'pair'), rng)(picked)
            total, _, metrics = losses.cross_entropy(logits, *fields.values())
            found['pair'] = {'loss': total} | metrics
        return found | others

    def weights(batch: Batch) -> dict[str, jax.Array]:
        found = {'tokens': jnp.sum(batch['loss_weights'])}
        return found | ({'pair': jnp.sum(batch['label_weights'])} if pairs else {})

    return Loss(sums, weights, {'tokens': 1.0, 'pair': 1.0} if pairs else {'tokens': 1.0})


def replaced(model: Model, config: Config, device_mesh: Mesh, task: str) -> Loss:
    """Returns the loss of the discriminator, nats a token that is there, and that of the generator.

    What the generator fills in is drawn from its probabilities, without a gradient. In an evaluation the
    keys are of the rows, so that it is the same however these are batched. Without a generator the batch
    has other tokens in their places already.
    """
    if not config.objective.generator_size:
        return _discriminated(model)
    most = _most_predictions(config, device_mesh)

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        if rng is None:
            first = second = None
            keys = row_keys(batch['targets'])
        else:
            first, second, drawn = jax.random.split(rng, 3)
            keys = jax.random.split(drawn, len(batch['targets']))
        facts = {'model': model, 'params': params, 'segments': True}
        vectors, _ = hidden(batch=batch, rng=first, part='generator', **facts)
        chosen = places(batch['loss_weights'], most)
        picked, fields = take(vectors, batch, ('targets', 'loss_weights'), chosen)
        logits = head(model, params, 'generator', rng)
        found = _cross_entropy(logits, picked, fields, rng, model, config, device_mesh)
        logits = jax.lax.stop_gradient(logits(picked))
        logits = jnp.where(jnp.arange(logits.shape[-1]) < model.vocab_size, logits, -jnp.inf)
        fills = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
        fills = jnp.where(fields['loss_weights'] > 0, fills, fields['targets'])
        rows = jnp.arange(len(fills))[:, None]
        inputs = batch['targets'].at[rows, chosen].set(fills)
        vectors, others = hidden(
            batch=batch | {'inputs': inputs},
            rng=second,
            part='discriminator',
            **facts,
        )
        odds = head(model, params, 'discriminator', rng)(vectors)
        told = _told_apart(odds, inputs, batch)
        return {'discriminator': told, 'generator': found} | others

    def weights(batch: Batch) -> dict[str, jax.Array]:
        return {'discriminator': _there(batch), 'generator': jnp.sum(batch['loss_weights'])}

    weight = config.objective.discriminator_weight
    return Loss(sums, weights, {'discriminator': weight, 'generator': 1.0})


def _discriminated(model: Model) -> Loss:
    """Returns the loss of a discriminator that is alone."""

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        vectors, others = hidden(model, params, batch, rng, segments=True)
        odds = head(model, params, 'discriminator', rng)(vectors)
        return {'discriminator': _told_apart(odds, batch['inputs'], batch)} | others

    return Loss(sums, lambda batch: {'discriminator': _there(batch)}, {'discriminator': 1.0})


def _told_apart(odds: jax.Array, inputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Returns the sums of a discriminator: log odds `[B, T]` that a token of `inputs` was replaced."""
    made_up = inputs != batch['targets']
    nats = jax.nn.softplus(jnp.where(made_up, -odds, odds))
    there = (batch['segment_ids'] > 0).astype(jnp.float32)
    total = jnp.sum(there * nats)
    correct = jnp.sum(there * ((odds > 0) == made_up))
    return {'loss': total} | jax.lax.stop_gradient({'nats': total, 'correct': correct})


def _there(batch: Batch) -> jax.Array:
    return jnp.sum(batch['segment_ids'] > 0).astype(jnp.float32)


def row_keys(tokens: jax.Array) -> jax.Array:
    """Returns keys `[B]` of int32 `[B, T]`: of each row's own tokens, and nothing else."""
    factors = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.uint32) * jnp.uint32(2_654_435_761)
    numbers = jnp.sum((tokens.astype(jnp.uint32) + 1) * factors, axis=1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), numbers)


def _cross_entropy(logits, vectors, batch, rng, model, config, device_mesh) -> dict[str, jax.Array]:
    rows, length = batch['targets'].shape
    total, _, metrics = losses.chunked_cross_entropy(
        logits,
        vectors,
        batch['targets'],
        batch['loss_weights'],
        chunks=losses.chunks_for(
            rows // mesh.row_shards(device_mesh),
            length // device_mesh.shape['sequence'],
            model.padded_vocab_size // device_mesh.shape['tensor'],
            config.loss.max_logits_mb,
        ),
        label_smoothing=config.loss.label_smoothing if rng is not None else 0.0,
        z_loss=config.loss.z_loss if rng is not None else 0.0,
    )
    return {'loss': total} | metrics


def _most_predictions(config: Config, device_mesh: Mesh) -> int:
    """Returns P, at least the predictions of any row; the pieces of a loss, and a mesh, can divide it."""
    length = config.data.length
    if config.data.packing:  # Every window rounds up.
        return length
    most = OBJECTIVES[config.objective.name].predictions(length, config.objective)
    step = 8 * device_mesh.shape['sequence']
    return min(length, -(-most // step) * step)
