"""What a model is trained to do: a loss of one or several terms.

A term is a sum over tokens (or texts) and the weight that makes it a mean; what is minimised is the sum of
the means, each with its coefficient. Sums and weights add up exactly over micro-batches, hosts and ragged
last batches; a mean of means would not.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lm import losses, mesh, models
from lm.config import Config
from lm.errors import lookup
from lm.models import Electra, Model
from lm.models.heads import Head
from lm.objectives import OBJECTIVES

Batch = dict[str, jax.Array]
Sums = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Loss:
    """The terms of a loss.

    Attributes:
        sums: `(params, batch, rng) -> {term: {'loss': sum to be minimised, name: sum to be reported}}`.
            Without an rng it is the loss of evaluation: no dropout, no label smoothing, no z-loss.
        weights: `batch -> {term: weight}`, float32 scalars.
        coefficients: of the terms. The first is the main one, which perplexity is of.
    """

    sums: Callable[[Any, Batch, jax.Array | None], Sums]
    weights: Callable[[Batch], dict[str, jax.Array]]
    coefficients: dict[str, float]

    @property
    def main(self) -> str:
        """The first term."""
        return next(iter(self.coefficients))


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
) -> jax.Array:
    """Returns `[B, T, D]`.

    Args:
        model: any.
        params: its parameters.
        batch: of the batch contract.
        rng: for dropout; None is without.
        segments: whether rows hold more than one text, or padding that tokens would see.
        **options: of the model's `hidden`.
    """
    facts = {name: batch[name] for name in _FACTS if name in batch}
    return model.apply(
        {'params': params},
        batch['inputs'],
        segment_ids=batch['segment_ids'] if segments else None,
        deterministic=rng is None,
        rngs=None if rng is None else {'dropout': rng},
        method='hidden',
        **facts,
        **options,
    )


def next_token(model: Model, config: Config, device_mesh: Mesh) -> Loss:
    """Returns the cross-entropy of next tokens, of decoders and encoder-decoders."""
    segments = config.data.packing or config.model.architecture != 'decoder'

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        vectors = hidden(model, params, batch, rng, segments)
        logits = functools.partial(model.apply, {'params': params}, method='logits')
        return {'tokens': _cross_entropy(logits, vectors, batch, rng, model, config, device_mesh)}

    return Loss(sums, lambda batch: {'tokens': jnp.sum(batch['loss_weights'])}, {'tokens': 1.0})


def masked(model: Model, config: Config, device_mesh: Mesh) -> Loss:
    """Returns the cross-entropy of masked tokens, of encoders, and that of a pair's label."""
    most = _most_predictions(config, device_mesh)
    pairs = any(name == 'pair' for name, _ in model.heads)

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        vectors = hidden(model, params, batch, rng, segments=True)
        picked, fields = pick(vectors, batch, ('targets', 'loss_weights'), most)
        logits = _head(model, params, 'tokens', rng)
        found = {'tokens': _cross_entropy(logits, picked, fields, rng, model, config, device_mesh)}
        if pairs:
            picked, fields = pick(vectors, batch, ('labels', 'label_weights'), 1)
            logits = _head(model, params, 'pair', rng)(picked)
            total, _, metrics = losses.cross_entropy(logits, *fields.values())
            found['pair'] = {'loss': total} | metrics
        return found

    def weights(batch: Batch) -> dict[str, jax.Array]:
        found = {'tokens': jnp.sum(batch['loss_weights'])}
        return found | ({'pair': jnp.sum(batch['label_weights'])} if pairs else {})

    return Loss(sums, weights, {'tokens': 1.0, 'pair': 1.0} if pairs else {'tokens': 1.0})


def replaced(model: Model, config: Config, device_mesh: Mesh) -> Loss:
    """Returns the loss of the discriminator, nats a token that is there, and that of the generator.

    What the generator fills in is drawn from its probabilities, without a gradient. In an evaluation the
    keys are of the rows, so that it is the same however these are batched.
    """
    most = _most_predictions(config, device_mesh)

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        if rng is None:
            first = second = None
            keys = row_keys(batch['targets'])
        else:
            first, second, drawn = jax.random.split(rng, 3)
            keys = jax.random.split(drawn, len(batch['targets']))
        facts = {'model': model, 'params': params, 'segments': True}
        vectors = hidden(batch=batch, rng=first, part='generator', **facts)
        places = _places(batch['loss_weights'], most)
        picked, fields = take(vectors, batch, ('targets', 'loss_weights'), places)
        logits = _head(model, params, 'generator', rng)
        found = _cross_entropy(logits, picked, fields, rng, model, config, device_mesh)
        logits = jax.lax.stop_gradient(logits(picked))
        logits = jnp.where(jnp.arange(logits.shape[-1]) < model.vocab_size, logits, -jnp.inf)
        fills = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
        fills = jnp.where(fields['loss_weights'] > 0, fills, fields['targets'])
        rows = jnp.arange(len(fills))[:, None]
        inputs = batch['targets'].at[rows, places].set(fills)
        vectors = hidden(
            batch=batch | {'inputs': inputs},
            rng=second,
            part='discriminator',
            **facts,
        )
        odds = _head(model, params, 'discriminator', rng)(vectors)  # [B, T]
        made_up = inputs != batch['targets']
        nats = jax.nn.softplus(jnp.where(made_up, -odds, odds))
        there = (batch['segment_ids'] > 0).astype(jnp.float32)
        total = jnp.sum(there * nats)
        correct = jnp.sum(there * ((odds > 0) == made_up))
        metrics = jax.lax.stop_gradient({'nats': total, 'correct': correct})
        return {'discriminator': {'loss': total} | metrics, 'generator': found}

    def weights(batch: Batch) -> dict[str, jax.Array]:
        there = jnp.sum(batch['segment_ids'] > 0).astype(jnp.float32)
        return {'discriminator': there, 'generator': jnp.sum(batch['loss_weights'])}

    weight = config.objective.discriminator_weight
    return Loss(sums, weights, {'discriminator': weight, 'generator': 1.0})


def row_keys(tokens: jax.Array) -> jax.Array:
    """Returns keys `[B]` of int32 `[B, T]`: of each row's own tokens, and nothing else."""
    places = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.uint32) * jnp.uint32(2_654_435_761)
    numbers = jnp.sum((tokens.astype(jnp.uint32) + 1) * places, axis=1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), numbers)


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
    return take(vectors, batch, names, _places(batch[names[1]], most))


def take(
    vectors: jax.Array, batch: Batch, names: tuple[str, ...], places: jax.Array
) -> tuple[jax.Array, Batch]:
    """Returns the vectors and fields at places, int `[B, P]`."""
    fields = {name: jnp.take_along_axis(batch[name], places, axis=1) for name in names}
    return jnp.take_along_axis(vectors, places[..., None], axis=1), fields


def _places(weights: jax.Array, most: int) -> jax.Array:
    """Returns where weights are above 0, int `[B, P]`; and of rows with fewer, other places too."""
    return jax.lax.top_k((weights > 0).astype(jnp.float32), min(most, weights.shape[1]))[1]


def _head(model: Model, params: Any, name: str, rng: jax.Array | None):
    """Returns `vectors -> predictions` of a head."""
    return functools.partial(
        model.apply,
        {'params': params},
        name=name,
        deterministic=rng is None,
        rngs=None if rng is None else {'dropout': jax.random.fold_in(rng, 1)},
        method='predict',
    )


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


def _with_next_token(config: Config, vocab_size: int, device_mesh: Mesh) -> tuple[Model, Loss]:
    model = models.build(config, vocab_size)
    return model, next_token(model, config, device_mesh)


def _with_masked(config: Config, vocab_size: int, device_mesh: Mesh) -> tuple[Model, Loss]:
    heads = {'tokens': Head('tokens')}
    if config.objective.pairs:
        heads['pair'] = Head('pooled', 2)
    model = models.build(config, vocab_size, heads)
    return model, masked(model, config, device_mesh)


def _with_streams(config: Config, vocab_size: int, device_mesh: Mesh) -> tuple[Model, Loss]:
    model = models.build(config, vocab_size, {'tokens': Head('output')}, streams=True)
    return model, masked(model, config, device_mesh)


def _with_generator(config: Config, vocab_size: int, device_mesh: Mesh) -> tuple[Model, Loss]:
    size = config.objective.generator_size
    model = Electra(config.model, vocab_size, config.data.length, size)
    return model, replaced(model, config, device_mesh)


# Name in `config.objective` -> the model and the loss of (config, V, mesh).
TERMS = {
    'causal': _with_next_token,
    'prefix': _with_next_token,
    'masked': _with_masked,
    'permutation': _with_streams,
    'replaced': _with_generator,
    'span_corruption': _with_next_token,
    'ul2': _with_next_token,
    'denoising': _with_next_token,
    'seq2seq': _with_next_token,
}


def build(config: Config, vocab_size: int, device_mesh: Mesh) -> tuple[Model, Loss]:
    """Returns the model of a config, and what it is trained to do.

    Raises:
        InputError: there is no such objective or architecture.
    """
    make = lookup(TERMS, config.objective.name, 'config.objective.name')
    return make(config, vocab_size, device_mesh)


def flat(sums: Sums, main: str) -> dict[str, jax.Array]:
    """Returns `{NAME: sum}` of the main term, and `{TERM/NAME: sum}` of the others."""
    return {
        name if term == main else f'{term}/{name}': value
        for term, found in sums.items()
        for name, value in found.items()
    }
