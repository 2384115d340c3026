"""Link prediction: where the true end of a triple ranks among all entities, by the model's own score.

The protocol is the filtered one of Bordes et al. 2013: each test triple asks for its tail and for its head;
candidates that make another triple known to be true, of training, validation or test, are left out. The
score of a candidate is the log probability that the model gives it as the answer (a decoder scores the
whole sentence, of which all that is before the answer is the same). Ties have the mean of the ranks that
they could have: breaking them for the true entity flatters models that give many the same score (Sun et
al. 2020, https://arxiv.org/abs/1911.03903; "realistic" in Berrendorf et al. 2020,
https://arxiv.org/abs/2002.06914).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm import vocabulary
from lm.data import features, source, triples
from lm.data.slices import Document
from lm.run import Run, split_sources
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
    sources = {name: source.parse(spec, data) for name, spec in split_sources(data).items()}
    graphs = {name: found for name, each in sources.items() if (found := each.graphs)}
    name = next((name for name in ('test', 'valid') if name in graphs), '')
    if not name or not run.objective.whole:
        return {}
    # Whatever part of a file is asked for, all that is known of it is filtered.
    graph = [triple for found in graphs.values() for each in found for triple in each.facts()]
    entities = sorted({end for triple in graph for end in (triple.head, triple.tail)})
    limit = config.eval.candidates
    sampled = 0 < limit < len(entities)
    found = []
    for each in graphs[name]:
        pairs = [pair for triple in each.triples() for pair in triples.questions(triple)]
        candidates = _candidates(pairs, graph, entities, limit if sampled else 0)
        rank = _ranked(run, params, pairs, candidates, each.constants, f'{name} links')
        found += [rank[pair] for pair in pairs]
    tails, heads = np.array(found).reshape(-1, 2).T
    size = f'{limit} random of {len(entities)}' if sampled else f'all {len(entities)}'
    return {
        f'{name}, {size} candidates': {
            **measures(np.concatenate([tails, heads])),
            'mrr of tails': measures(tails)['mrr'],
            'mrr of heads': measures(heads)['mrr'],
            'questions': len(found),
            'signature': 'filtered, both ends, ties: mean rank'
            + (', SAMPLED candidates: compares with no full ranking' if sampled else ''),
        }
    }


class Candidates(NamedTuple):
    """Those of a question: entities, and which of them are known to be an answer, bool [C]."""

    entities: Sequence[str]
    known: np.ndarray


def _candidates(
    pairs: Sequence[Pair], graph: Sequence[triples.Triple], entities: Sequence[str], limit: int
) -> dict[str, Candidates]:
    """Returns the candidates of each question; of `limit` where it is not 0, all but the answer random."""
    known: dict[str, set[str]] = {}
    for text, answer in (pair for triple in graph for pair in triples.questions(triple)):
        known.setdefault(text, set()).add(answer)
    answers: dict[str, dict[str, None]] = {}
    for text, answer in pairs:
        answers.setdefault(text, {})[answer] = None
    found = {}
    for number, (text, asked) in enumerate(answers.items()):
        chosen = entities
        if limit:
            others = [entity for entity in entities if entity not in known[text]]
            drawn = np.random.default_rng([0, number]).permutation(len(others))[: limit - 1]
            chosen = [*asked, *(others[i] for i in drawn)]
        found[text] = Candidates(chosen, np.array([entity in known[text] for entity in chosen]))
    return found


def _ranked(
    run: Run,
    params: Any,
    pairs: Sequence[Pair],
    candidates: Mapping[str, Candidates],
    codes: tuple[str, ...],
    label: str,
) -> dict[Pair, float]:
    """Returns the rank of each question's answer among its candidates, in documents with these codes."""
    asked: dict[str, list[str]] = {}
    for text, answer in dict.fromkeys(pairs):
        asked.setdefault(text, []).append(answer)
    found = {}
    for group in _groups({text: len(candidates[text].entities) for text in asked}):
        of_group = [(text, c) for text in group for c in candidates[text].entities]
        scores = iter(_scores(run, params, of_group, codes, label))
        for text in group:
            chosen, known = candidates[text]
            row = np.fromiter(itertools.islice(scores, len(chosen)), float)
            places = [chosen.index(answer) for answer in asked[text]]
            shape = len(places), len(chosen)
            of_text = ranks(np.broadcast_to(row, shape), places, np.broadcast_to(known, shape))
            found |= {(text, a): float(r) for a, r in zip(asked[text], of_text, strict=True)}
    return found


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yields questions in groups of at most `_TEXTS` candidates, or of one question."""
    group, total = [], 0
    for text, size in sizes.items():
        if group and total + size > _TEXTS:
            yield group
            group, total = [], 0
        group.append(text)
        total += size
    yield group


def _scores(
    run: Run, params: Any, pairs: Sequence[Pair], codes: tuple[str, ...], label: str
) -> np.ndarray:
    """Returns the log probability of each answer to its question, up to a number for each question."""
    config, writes = run.config, run.objective.writes
    ids = vocabulary.code_ids(run.tokenizer, config.tokenizer)
    documents = (
        Document(text, codes=codes)
        for question, answer in pairs
        for text in (
            (config.data.prefix + question, answer) if writes else (f'{question} {answer}',)
        )
    )
    split = features.from_documents(documents, run.tokenizer, ids, writes)
    return log_probabilities(run, params, split, label)
