"""What a model is trained to do: a loss of one or several terms.

A term is a sum over tokens (or texts) and the weight that makes it a mean; what is minimised is the sum of
the means, each with its coefficient. Sums and weights add up exactly over micro-batches, hosts and ragged
last batches; a mean of means would not.
"""

import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh

from lm import config as configs
from lm import models
from lm.config import Config
from lm.errors import InputError, lookup
from lm.models import Electra, Model
from lm.models.heads import Head
from lm.terms import experts
from lm.terms.loss import Batch as Batch
from lm.terms.loss import Loss, joined, own
from lm.terms.loss import Sums as Sums
from lm.terms.loss import Trained as Trained
from lm.terms.loss import flat as flat
from lm.terms.loss import hidden as hidden
from lm.terms.texts import classified, contrasted, regressed
from lm.terms.tokens import masked, next_token, replaced


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


def _replaced_heads(config: Config) -> dict[str, Head]:
    alone = not config.objective.generator_size
    return {'discriminator': Head('discriminator')} if alone else {}


def _electra(config: Config, vocab_size: int, heads: dict[str, Head], streams: bool) -> Model:
    size = config.objective.generator_size
    if not size:
        return models.build(config, vocab_size, heads, streams)
    return Electra(config.model, vocab_size, config.data.length, size)


# Name in `config.objective` -> how it is learnt.
TERMS = {
    'causal': Recipe(next_token),
    'prefix': Recipe(next_token),
    'masked': Recipe(masked, _masked_heads),
    'permutation': Recipe(masked, lambda config: {'tokens': Head('output')}, streams=True),
    'replaced': Recipe(replaced, _replaced_heads, model=_electra),
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
        task: experts.added(
            recipe.loss(model, tasks[task], device_mesh, task), tasks[task], recipe.streams
        )
        for task, recipe in recipes.items()
    }
    return model, joined(parts) if config.tasks else parts[''], parts
