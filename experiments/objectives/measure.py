"""What an objective's model knows before and after training, and what a constant guess would."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lm
from lm import run as runs
from lm.data import pipeline
from lm.perplexity import perplexity
from lm.step import evaluated_params

# Where a batch has the answers to what a term of a loss asks, and their weights.
ANSWERS = {'tokens': ('targets', 'loss_weights'), 'pair': ('labels', 'label_weights')}


def measure(workdir: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Returns of each term `{'before', 'after', 'guess'}`, each `{'nats', 'accuracy'}`, on `valid`.

    The guess is the best that knows only how often each answer is right: its nats are the entropy of the
    answers, and its accuracy is the share of the most frequent one.
    """
    model = lm.load(workdir)
    run = model.run
    split = runs.tokenized_splits(run.config, run.tokenizer, ('valid',))['valid']
    with jax.set_mesh(run.mesh):
        first = evaluated_params(run.steps.init())
    # Of the main term the names stand alone.
    main = 'discriminator' if run.config.objective.name == 'replaced' else 'tokens'
    guesses = {term: guess(counts) for term, counts in _answers(run, split).items()}
    before, after = (perplexity(run, params, split) for params in (first, model.params))
    if main == 'discriminator':
        real = perplexity(run, never(model.params), split)['accuracy']
        guesses = {main: guess(np.array([real, 1 - real])), 'generator': guesses['tokens']}
    return {
        term: {
            'before': _found(before, term, main),
            'after': _found(after, term, main),
            'guess': best,
        }
        for term, best in guesses.items()
    }


def guess(counts: np.ndarray) -> dict[str, float]:
    """Returns nats and accuracy of the best constant guess, given how often each answer is right."""
    share = counts[counts > 0] / counts.sum()
    return {'nats': float(-(share * np.log(share)).sum()), 'accuracy': float(share.max())}


def never(params: dict[str, Any]) -> dict[str, Any]:
    """Returns parameters of ELECTRA, whose discriminator takes every token for real."""
    changed = jax.tree.map(lambda x: x, params)
    out = changed['discriminator']['head_discriminator']['out']
    out |= {'kernel': jnp.zeros_like(out['kernel']), 'bias': jnp.full_like(out['bias'], -1)}
    return changed


def _found(result: dict[str, Any], term: str, main: str) -> dict[str, float]:
    prefix = '' if term == main else f'{term}/'
    return {'nats': result[f'{prefix}loss'], 'accuracy': result[f'{prefix}accuracy']}


def _answers(run: runs.Run, split: Any) -> dict[str, np.ndarray]:
    """Returns how often each answer is right in a split, of each term that a batch has the answers of."""
    dataset = pipeline.eval_dataset(
        split,
        run.config.data,
        run.objective,
        stride=0,
        batch_size=runs.evaluation_rows(run.config),
    )
    counts: dict[str, np.ndarray] = {}
    for i in range(len(dataset)):
        batch = dataset[i]
        for term, (answers, weights) in ANSWERS.items():
            if answers in batch:
                found = np.bincount(
                    batch[answers].reshape(-1),
                    batch[weights].reshape(-1),
                    minlength=run.steps.model.vocab_size,
                )
                counts[term] = counts.get(term, 0) + found
    return counts
