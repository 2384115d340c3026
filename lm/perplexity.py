"""Perplexity over whole splits, each token scored once."""

import collections
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from lm import hosts, mesh
from lm import run as runs
from lm.data import features, pipeline
from lm.run import Run

# Long evaluations show a bar.
Bar = Callable[[Iterable[Any], int, str], Iterable[Any]]


def bar(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """Shows progress on stderr where it is a terminal."""
    from tqdm.auto import tqdm

    return tqdm(items, total=total, desc=label, disable=None, leave=False, unit='batch')


def perplexity(
    run: Run,
    params: Any,
    split: features.TokenizedSplit,
    batches: int = 0,
    label: str = 'evaluate',
) -> dict[str, float | None]:
    """Returns the perplexity of a split and its relatives.

    Args:
        run: the run.
        params: the parameters to evaluate.
        split: tokens of the split.
        batches: at most so many batches; 0 is the whole split.
        label: of the progress bar.

    Returns:
        `loss` nats a token, `perplexity` = exp(total nats / total tokens), `accuracy` of the likeliest
        token, `tokens` (the end of each document is one, its beginning is not), and of the whole split
        also `bits_per_byte` = total nats / ln 2 / UTF-8 bytes of the text, `word_perplexity` =
        exp(total nats / words) with words separated by white space (as lm-evaluation-harness has it),
        `words`, `bytes`; of a part of it, and where the objective does not predict every token of the text,
        these are None. Of terms besides the main one `TERM/loss` and `TERM/accuracy`, and of
        experts `experts/load` and its kin (`lm.layers.moe.statistics`).

        Of objectives of whole texts: `loss` nats a text, or the squared error; `accuracy`, or Pearson's
        correlation as `pearson`; and `texts`.
    """
    config = run.config
    dataset = pipeline.eval_dataset(
        split,
        config.data,
        run.objective,
        # With several tasks it is for those that can.
        stride=config.eval.stride if run.objective.slides or not run.task else 0,
        batch_size=runs.evaluation_rows(config),
        rows=mesh.rows_here(run.mesh),
    )
    count = min(batches, len(dataset)) if batches else len(dataset)
    ahead = mesh.prefetch(
        (dataset[i] for i in range(count)), config.data.prefetch, lambda b: mesh.put(b, run.mesh)
    )
    totals: collections.Counter[str] = collections.Counter()
    pending: list[Any] = []
    with jax.set_mesh(run.mesh):
        for batch in bar(ahead, count, label):
            pending.append(run.steps.evaluate(params, batch, run.task))
            hosts.reached()
            if len(pending) > 1:  # one batch late, so that the device never waits
                totals.update(_floats(pending.pop(0)))
        for sums in pending:
            totals.update(_floats(sums))
    if run.objective.of_texts:
        return _of_texts(totals)
    cut = run.objective.writes and (split.lengths[1::2] - 2 > run.objective.sides[1]).any()
    whole = count == len(dataset) and run.objective.whole and not cut
    nats, tokens = totals['nats'], totals['weight']
    return {
        'loss': nats / tokens,
        'perplexity': _exp(nats / tokens),
        'bits_per_byte': nats / math.log(2) / split.num_bytes if whole else None,
        'word_perplexity': _exp(nats / split.num_words) if whole and split.num_words else None,
        'accuracy': totals['correct'] / tokens,
        'tokens': int(tokens),
        'words': split.num_words if whole else None,
        'bytes': split.num_bytes if whole else None,
    } | _of_other_terms(totals)


def _of_other_terms(totals: Mapping[str, float]) -> dict[str, float]:
    """Returns the means of terms besides the main one."""
    shown, found = {'nats': 'loss', 'correct': 'accuracy'}, {}
    for key, total in totals.items():
        term, _, name = key.rpartition('/')
        if term and name not in ('loss', 'weight') and totals[f'{term}/weight']:
            found[f'{term}/{shown.get(name, name)}'] = total / totals[f'{term}/weight']
    return found


def _of_texts(totals: Mapping[str, float]) -> dict[str, float | None]:
    texts = totals['weight']
    if 'nats' in totals:
        found = {'loss': totals['nats'] / texts, 'accuracy': totals['correct'] / texts}
    else:
        x, y = totals['x'] / texts, totals['y'] / texts
        spread = (totals['xx'] / texts - x * x) * (totals['yy'] / texts - y * y)
        covariance = totals['xy'] / texts - x * y
        pearson = covariance / math.sqrt(spread) if spread > 0 else None
        found = {'loss': totals['error'] / texts, 'pearson': pearson}
    return found | {'texts': int(texts)} | _of_other_terms(totals)


def _floats(sums: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(sums).items()}


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
