"""Scores of texts against what they should be, by sacreBLEU, with the signature that says exactly how.

A metric is `(targets, predictions, **options) -> {name: float, 'signature': str}`. Targets are one text a
prediction, or a list of texts that are all right; all are plain text, not tokenized. Equal to the
`sacrebleu` command line on the same lines.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from lm.errors import InputError, lookup

Targets = Sequence[str] | Sequence[Sequence[str]]


def bleu(
    targets: Targets, predictions: Sequence[str], tokenizer: str = '13a', lowercase: bool = False
) -> dict[str, Any]:
    """Returns BLEU of a corpus, 0 to 100 (Papineni et al. 2002; Post 2018).

    >>> bleu(['a cat sat on the mat'], ['a cat sat on a mat'])
    {'bleu': 53.728..., 'signature': 'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0'}

    Args:
        targets: a text, or several, for each prediction.
        predictions: texts.
        tokenizer: of sacreBLEU: `13a` (mteval's, for languages with spaces), `zh`, `intl`, `char`, ...
        lowercase: compare without regard to case.

    Raises:
        InputError: there is no prediction, or another number of them than of targets; a target is empty;
            the tokenizer is not known or not installed.
    """
    return _score('bleu', _bleu(tokenizer, lowercase), targets, predictions)


def chrf(targets: Targets, predictions: Sequence[str], lowercase: bool = False) -> dict[str, Any]:
    """Returns chrF2 of a corpus, 0 to 100: F-score of character n-grams (Popović 2015).

    It needs no tokenizer. Arguments and errors as of `bleu`.
    """
    return _score('chrf', _chrf(0, lowercase), targets, predictions)


def chrf_with_words(
    targets: Targets, predictions: Sequence[str], lowercase: bool = False
) -> dict[str, Any]:
    """Returns chrF2++ of a corpus, 0 to 100: chrF with words and pairs of words too (Popović 2017)."""
    return _score('chrf++', _chrf(2, lowercase), targets, predictions)


METRICS: dict[str, Callable[..., dict[str, Any]]] = {
    'bleu': bleu,
    'chrf': chrf,
    'chrf++': chrf_with_words,
}


def paired_bootstrap(
    targets: Targets,
    a: Sequence[str],
    b: Sequence[str],
    metric: str = 'bleu',
    samples: int = 1000,
    seed: int = 12345,
    **options: Any,
) -> dict[str, Any]:
    """Returns whether system b differs from the baseline a by more than chance (Koehn 2004).

    It is the test of `sacrebleu REFERENCE -i A B --paired-bs`, whose seed is the default here.

    Args:
        targets: a text, or several, for each prediction.
        a: predictions of the baseline.
        b: predictions of the other system.
        metric: an entry of `METRICS`.
        samples: how often the texts are resampled.
        seed: of the resampling, above 0 (sacreBLEU takes 0 for none).
        **options: those of the metric.

    Returns:
        `a`, `b`: the scores; `a_mean`, `b_mean`: means over the samples; `a_interval`, `b_interval`: half
        the width of their 95 % intervals; `difference`: b's score less a's, and `interval`, the lowest and
        the highest of the middle 95 % of the samples'; `p`: of the hypothesis that a and b are equally
        good, 1 where they are the same (for which sacreBLEU has the least p there is); and `signature`.

    Raises:
        InputError: as the metric does; or the seed is below 1.
    """
    scorer = lookup(_SCORERS, metric, 'the metric')(**options)
    if seed < 1:
        raise InputError(f'the seed of a paired bootstrap is {seed}; it must be above 0.')
    _references(targets, a)
    references = _references(targets, b)
    with _seeded(seed), _explained():
        test = PairedTest(
            [('a', a), ('b', b)], {metric: scorer}, references, test_type='bs', n_samples=samples
        )
        signatures, scores = test()
        differences = _resampled(scorer, references, b, samples, seed) - _resampled(
            scorer, references, a, samples, seed
        )
    ((name, signature),) = signatures.items()
    first, second = scores[name]
    return {
        'a': float(first.score),
        'b': float(second.score),
        'a_mean': float(first.mean),
        'b_mean': float(second.mean),
        'a_interval': float(first.ci),
        'b_interval': float(second.ci),
        'difference': float(second.score) - float(first.score),
        'interval': _middle(differences),
        'p': 1.0 if list(a) == list(b) else float(second.p_value),
        'signature': str(signature),
    }


def _resampled(
    scorer: BLEU | CHRF,
    references: list[list[str | None]],
    predictions: Sequence[str],
    samples: int,
    seed: int,
) -> np.ndarray:
    """Returns the scores [samples] of the samples that sacreBLEU's test draws and does not return."""
    stats = np.array(scorer._extract_corpus_statistics(predictions, references), np.float32)
    drawn = np.random.default_rng(seed).choice(len(stats), (samples, len(stats)))
    return np.array([scorer._compute_score_from_stats(stats[i].sum(0)).score for i in drawn])


def _middle(values: np.ndarray) -> list[float]:
    """Returns the ends of the middle 95 %, as sacreBLEU cuts them."""
    values, cut = np.sort(values), len(values) // 40
    return [float(values[cut]), float(values[-1 - cut])]


def check_tokenizer(name: str, place: str) -> None:
    """Raises InputError if sacreBLEU has no such tokenizer, or a package of it is not installed."""
    lookup(dict.fromkeys(BLEU.TOKENIZERS), name, place)
    with _explained():
        BLEU(tokenize=name)


def _bleu(tokenizer: str = '13a', lowercase: bool = False) -> BLEU:
    lookup(dict.fromkeys(BLEU.TOKENIZERS), tokenizer, 'the tokenizer of BLEU')
    with _explained():
        return BLEU(tokenize=tokenizer, lowercase=lowercase)


def _chrf(word_order: int, lowercase: bool = False) -> CHRF:
    return CHRF(word_order=word_order, lowercase=lowercase)


_SCORERS: dict[str, Callable[..., BLEU | CHRF]] = {
    'bleu': _bleu,
    'chrf': functools.partial(_chrf, 0),
    'chrf++': functools.partial(_chrf, 2),
}


def _score(
    name: str, scorer: BLEU | CHRF, targets: Targets, predictions: Sequence[str]
) -> dict[str, Any]:
    references = _references(targets, predictions)
    with _explained():
        score = scorer.corpus_score(predictions, references)
    return {name: float(score.score), 'signature': str(scorer.get_signature())}


def _references(targets: Targets, predictions: Sequence[str]) -> list[list[str | None]]:
    """Returns targets as sacreBLEU wants them, [references][predictions], None where there are fewer.

    >>> _references([['a', 'b'], 'c'], ['x', 'y'])
    [['a', 'c'], ['b', None]]
    """
    if not predictions or len(predictions) != len(targets):
        raise InputError(
            f'{len(predictions)} predictions cannot be scored against {len(targets)} targets; each '
            'needs its own.'
        )
    texts = [[target] if isinstance(target, str) else list(target) for target in targets]
    for number, several in enumerate(texts):
        if not any(several):
            raise InputError(f'target {number} is empty, so that nothing can be compared with it.')
    most = max(map(len, texts))
    padded = [[*filter(None, several), *[None] * most][:most] for several in texts]
    return [list(column) for column in zip(*padded, strict=True)]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """sacreBLEU takes its seed from the environment only."""
    before = os.environ.get('SACREBLEU_SEED')
    os.environ['SACREBLEU_SEED'] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ['SACREBLEU_SEED']
        else:
            os.environ['SACREBLEU_SEED'] = before


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What sacreBLEU says in a RuntimeError, such as which package a tokenizer needs, in one line."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(f'sacreBLEU: {" ".join(str(error).split())}') from None
