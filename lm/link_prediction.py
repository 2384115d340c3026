"""Link prediction: where the true end of a triple ranks among all entities, by the model's own score.

The protocol is the filtered one of Bordes et al. 2013: each test triple asks for its tail and for its head;
candidates that make another triple known to be true, of training, validation or test, are left out. The
score of a candidate is the log probability that the model gives it as the answer (a decoder scores the
whole sentence, of which all that is before the answer is the same). Ties have the mean of the ranks that
they could have: breaking them for the true entity flatters models that give many the same score (Sun et
al. 2020, https://arxiv.org/abs/1911.03903; "realistic" in Berrendorf et al. 2020,
https://arxiv.org/abs/2002.06914).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm.data import features, source, triples
from lm.run import SPLITS, Run
from lm.scores import log_probabilities

Pair = tuple[str, str]  # A question and an answer.

_TEXTS = 50_000  # Scored at a time.
HITS = (1, 3, 10)


def ranks(scores: np.ndarray, answers: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns the filtered rank of each answer, from 1; of ties the mean.

    >>> ranks([[5, 9, 5, 1, 7]], [2], [[False, True, True, False, False]])  # 1 better, 1 as good
    [2.5]

    Args:
        scores: float `[Q, C]`, of each question's candidates; larger is better.
        answers: int `[Q]`, which candidate is asked for.
        known: bool `[Q, C]`, candidates that are true; they do not count.

    Returns:
        float64 `[Q]`.
    """
    scores, answers = np.asarray(scores), np.asarray(answers)
    of_answer = np.take_along_axis(scores, answers[:, None], axis=1)
    others = ~np.asarray(known)
    np.put_along_axis(others, answers[:, None], False, axis=1)
    better = ((scores > of_answer) & others).sum(axis=1)
    equal = ((scores == of_answer) & others).sum(axis=1)
    return 1 + better + equal / 2


def measures(found: np.ndarray) -> dict[str, float]:
    """Returns the mean reciprocal rank, and the part of ranks that are at most 1, 3 and 10.

    >>> measures([1, 2, 4, 20])
    {'mrr': 0.45, 'hits@1': 0.25, 'hits@3': 0.5, 'hits@10': 0.75}
    """
    found = np.asarray(found, np.float64)
    hits = {f'hits@{k}': float(np.mean(found <= k)) for k in HITS}
    return {'mrr': float(np.mean(1 / found)), **hits}


def evaluate(run: Run, params: Any) -> dict[str, dict[str, Any]]:
    """Returns the link prediction of the test triples, or where there are none, of the validation's.

    `config.eval.candidates` limits the candidates of a question: where there are more entities, they are a
    random sample, the same for every model, and the result is named so. It is better than that of all.

    Args:
        run: of an objective that predicts every token of a text; others have no result.
        params: its parameters.

    Returns:
        `{'SPLIT, CANDIDATES': {'mrr', 'hits@1', ..., 'signature'}}`; empty where no split is of triples.
    """
    config, data = run.config, run.config.data
    sources = {s: source.parse(spec, data) for s in SPLITS if (spec := getattr(data, s))}
    asked = {name: sources[name].triples() for name in ('test', 'valid') if name in sources}
    name = next((name for name, found in asked.items() if found), '')
    if not name or not run.objective.whole:
        return {}
    graph = [triple for each in sources.values() if each.facts for triple in each.facts()]
    entities = sorted({end for triple in graph for end in (triple.head, triple.tail)})
    limit = config.eval.candidates
    sampled = 0 < limit < len(entities)
    pairs = [pair for triple in asked[name] for pair in triples.questions(triple)]
    rank = _ranked(run, params, pairs, graph, entities, limit if sampled else 0, f'{name} links')
    tails, heads = np.array([rank[pair] for pair in pairs]).reshape(-1, 2).T
    size = f'{limit} random of {len(entities)}' if sampled else f'all {len(entities)}'
    return {
        f'{name}, {size} candidates': {
            **measures(np.concatenate([tails, heads])),
            'mrr of tails': measures(tails)['mrr'],
            'mrr of heads': measures(heads)['mrr'],
            'questions': len(pairs),
            'signature': 'filtered, both ends, ties: mean rank'
            + (', SAMPLED candidates: compares with no full ranking' if sampled else ''),
        }
    }


def _ranked(
    run: Run,
    params: Any,
    pairs: Sequence[Pair],
    graph: Sequence[triples.Triple],
    entities: Sequence[str],
    limit: int,
    label: str,
) -> dict[Pair, float]:
    """Returns the rank of each question's answer; among `limit` random candidates where it is not 0."""
    known: dict[str, set[str]] = {}
    for text, answer in (pair for triple in graph for pair in triples.questions(triple)):
        known.setdefault(text, set()).add(answer)
    answers: dict[str, dict[str, None]] = {}
    for text, answer in pairs:
        answers.setdefault(text, {})[answer] = None
    candidates = {}
    for number, (text, asked) in enumerate(answers.items()):
        candidates[text] = entities
        if limit:
            others = [entity for entity in entities if entity not in known[text]]
            drawn = np.random.default_rng([0, number]).permutation(len(others))[: limit - 1]
            candidates[text] = [*asked, *(others[i] for i in drawn)]
    found = {}
    for group in _groups(candidates):
        scores = _scores(
            run, params, [(text, c) for text in group for c in candidates[text]], label
        )
        sizes = [len(candidates[text]) for text in group]
        for text, part in zip(group, np.split(scores, np.cumsum(sizes)[:-1]), strict=True):
            of, asked = candidates[text], answers[text]
            places = [of.index(answer) for answer in asked]
            is_known = [candidate in known[text] for candidate in of]
            each = np.tile(part, (len(asked), 1)), np.tile(is_known, (len(asked), 1))
            for answer, rank in zip(asked, ranks(each[0], places, each[1]), strict=True):
                found[text, answer] = float(rank)
    return found


def _groups(candidates: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Yields questions in groups of at most `_TEXTS` candidates, or of one question."""
    group, size = [], 0
    for text, of in candidates.items():
        if group and size + len(of) > _TEXTS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(of)
    yield group


def _scores(run: Run, params: Any, pairs: Sequence[Pair], label: str) -> np.ndarray:
    """Returns the log probability of each answer to its question, up to a number for each question."""
    writes = run.objective.writes
    texts = [text for pair in pairs for text in (pair if writes else (' '.join(pair),))]
    split = features.from_texts(texts, run.tokenizer)
    return log_probabilities(run, params, dataclasses.replace(split, paired=writes), label)
