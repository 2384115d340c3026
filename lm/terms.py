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

from lm import config as configs
from lm import losses, mesh, models
from lm.config import Config
from lm.errors import InputError, lookup
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


def next_token(model: Model, config: Config, device_mesh: Mesh, task: str) -> Loss:
    """Returns the cross-entropy of next tokens, of decoders and encoder-decoders."""
    segments = config.data.packing or config.model.architecture != 'decoder'

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        vectors = hidden(model, params, batch, rng, segments)
        logits = functools.partial(model.apply, {'params': params}, method='logits')
        return {'tokens': _cross_entropy(logits, vectors, batch, rng, model, config, device_mesh)}

    return Loss(sums, lambda batch: {'tokens': jnp.sum(batch['loss_weights'])}, {'tokens': 1.0})


def masked(model: Model, config: Config, device_mesh: Mesh, task: str) -> Loss:
    """Returns the cross-entropy of masked tokens, of encoders, and that of a pair's label."""
    most = _most_predictions(config, device_mesh)
    pairs = bool(config.objective.pairs) and config.objective.name == 'masked'

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        vectors = hidden(model, params, batch, rng, segments=True)
        picked, fields = pick(vectors, batch, ('targets', 'loss_weights'), most)
        logits = _head(model, params, 'tokens', rng)
        found = {'tokens': _cross_entropy(logits, picked, fields, rng, model, config, device_mesh)}
        if pairs:
            picked, fields = pick(vectors, batch, ('labels', 'label_weights'), 1)
            logits = _head(model, params, own(task, 'pair'), rng)(picked)
            total, _, metrics = losses.cross_entropy(logits, *fields.values())
            found['pair'] = {'loss': total} | metrics
        return found

    def weights(batch: Batch) -> dict[str, jax.Array]:
        found = {'tokens': jnp.sum(batch['loss_weights'])}
        return found | ({'pair': jnp.sum(batch['label_weights'])} if pairs else {})

    return Loss(sums, weights, {'tokens': 1.0, 'pair': 1.0} if pairs else {'tokens': 1.0})


def replaced(model: Model, config: Config, device_mesh: Mesh, task: str) -> Loss:
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


def classified(model: Model, config: Config, device_mesh: Mesh, task: str) -> Loss:
    """Returns the cross-entropy of a class, nats a text, from its first token's vector."""

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        vectors = hidden(model, params, batch, rng, segments=True)
        picked, fields = pick(vectors, batch, ('labels', 'label_weights'), 1)
        logits = _head(model, params, own(task, 'label'), rng)(picked)
        total, _, metrics = losses.cross_entropy(logits, *fields.values())
        return {'label': {'loss': total} | metrics}

    return Loss(sums, _label_weight, {'label': 1.0})


def regressed(model: Model, config: Config, device_mesh: Mesh, task: str) -> Loss:
    """Returns the squared error of a value, from the text's first token's vector.

    Its sums are also those that Pearson's correlation is made of: of x (what is predicted), y, and their
    products.
    """

    def sums(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
        vectors = hidden(model, params, batch, rng, segments=True)
        picked, fields = pick(vectors, batch, ('label_values', 'label_weights'), 1)
        x = _head(model, params, own(task, 'label'), rng)(picked)[..., 0]  # [B, 1]
        y, weight = fields.values()
        products = {'x': x, 'y': y, 'xx': x * x, 'yy': y * y, 'xy': x * y}
        error = jnp.sum(weight * (x - y) ** 2)
        metrics = {name: jnp.sum(weight * value) for name, value in products.items()}
        return {'label': {'loss': error} | jax.lax.stop_gradient({'error': error} | metrics)}

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
        vectors = hidden(model, params, alone, rng, segments=True).astype(jnp.float32)
        which = jnp.stack([there & ~second, second], axis=1).astype(jnp.float32)  # [B, 2, T]
        texts = jnp.einsum('bst,btd->sbd', which, vectors)
        texts /= jnp.linalg.norm(texts, axis=-1, keepdims=True) + 1e-6  # [2, B, D]
        weights = jnp.sum(batch['label_weights'], axis=1)  # [B]
        logits = texts[0] @ texts[1].T / config.objective.similarity_temperature
        logits = jnp.where(weights > 0, logits, -1e9)  # Rows that fill a batch are no choice.
        total, _, metrics = losses.cross_entropy(logits, jnp.arange(len(weights)), weights)
        return {'label': {'loss': total} | metrics}

    return Loss(sums, _label_weight, {'label': 1.0})


def _label_weight(batch: Batch) -> dict[str, jax.Array]:
    return {'label': jnp.sum(batch['label_weights'])}


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


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an objective is learnt.

    Attributes:
        loss: (model, config, mesh, task) -> the loss; `own(task, name)` are its heads.
        heads: config -> heads of an encoder, by name. Tasks share `tokens`, and have others of their own.
        streams: the encoder has a second stream.
        model: (config, V, heads, streams) -> the model.
    """

    loss: Callable[[Model, Config, Mesh, str], Loss]
    heads: Callable[[Config], dict[str, Head]] = lambda config: {}
    streams: bool = False
    model: Callable[..., Model] = models.build


def _masked_heads(config: Config) -> dict[str, Head]:
    heads = {'tokens': Head('tokens')}
    return heads | ({'pair': Head('pooled', 2)} if config.objective.pairs else {})


def _electra(config: Config, vocab_size: int, heads: dict[str, Head], streams: bool) -> Model:
    return Electra(config.model, vocab_size, config.data.length, config.objective.generator_size)


# Name in `config.objective` -> how it is learnt.
TERMS = {
    'causal': Recipe(next_token),
    'prefix': Recipe(next_token),
    'masked': Recipe(masked, _masked_heads),
    'permutation': Recipe(masked, lambda config: {'tokens': Head('output')}, streams=True),
    'replaced': Recipe(replaced, model=_electra),
    'span_corruption': Recipe(next_token),
    'ul2': Recipe(next_token),
    'denoising': Recipe(next_token),
    'seq2seq': Recipe(next_token),
    'classification': Recipe(
        classified, lambda config: {'label': Head('pooled', len(config.objective.classes))}
    ),
    'similarity': Recipe(regressed, lambda config: {'label': Head('pooled', 1)}),
    'contrastive': Recipe(contrasted),
}


def own(task: str, head: str) -> str:
    """Returns the name of a task's head; all tasks share `tokens`."""
    return f'{task}_{head}' if task and head != 'tokens' else head


def build(
    config: Config, vocab_size: int, device_mesh: Mesh
) -> tuple[Model, Loss, dict[str, Loss]]:
    """Returns the model of a config, what it is trained to do, and the loss of each task.

    Raises:
        InputError: there is no such objective or architecture, or the tasks cannot share a model.
    """
    tasks = configs.tasks(config)
    recipes = {
        task: lookup(TERMS, part.objective.name, 'config.objective.name')
        for task, part in tasks.items()
    }
    kinds = {(recipe.model, recipe.streams) for recipe in recipes.values()}
    heads: dict[str, Head] = {}
    for task, recipe in recipes.items():
        for name, head in recipe.heads(tasks[task]).items():
            if heads.setdefault(own(task, name), head) != head:
                kinds.add((None, name))
    if len(kinds) > 1 or (_electra, False) in kinds and len(tasks) > 1:
        names = ', '.join(f"'{part.objective.name}'" for part in tasks.values())
        raise InputError(
            f'config.tasks: the objectives {names} are of models of different kinds; train them apart.'
        )
    ((make, streams),) = kinds
    model = make(config, vocab_size, heads, streams)
    parts = {
        task: recipe.loss(model, tasks[task], device_mesh, task) for task, recipe in recipes.items()
    }
    return model, joined(parts) if config.tasks else parts[''], parts


def flat(sums: Sums, main: str) -> dict[str, jax.Array]:
    """Returns `{NAME: sum}` of the main term, and `{TERM/NAME: sum}` of the others."""
    return {
        name if term == main else f'{term}/{name}': value
        for term, found in sums.items()
        for name, value in found.items()
    }
