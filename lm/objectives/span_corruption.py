"""Write the spans that are missing in a text."""

import numpy as np

from lm.objectives.seq2seq import written
from lm.objectives.spans import compose, place, places, replace
from lm.objectives.spec import Draw, Spec
from lm.vocabulary import Vocabulary, inner


def span_corruption(
    tokens: np.ndarray, rng: np.random.Generator, spec: Spec, draw: Draw | None = None
) -> dict[str, np.ndarray]:
    """Returns the fields of span corruption (Raffel et al. 2020).

    Spans of the text, never next to each other, become one sentinel each; the target is each sentinel
    with its span. Their number and their tokens depend on n only, so that the lengths of the fields
    do; how the tokens are shared among spans and where they stand is uniform over all ways. (In T5 a
    text always begins outside of a span and ends in one.)

    >>> span_corruption([1, 10, 11, 12, 13, 14, 15, 2], np.random.default_rng(2), spec)
    ... # rate 0.4, span 1.5, sentinels 20, 21
    {'inputs': [1, 20, 10, 11, 21, 15], 'targets': [20, 10, 11, 21, 15, 2],
     'loss_weights': [1., 1., 1., 1., 1., 1.], 'encoder_inputs': [1, 20, 12, 13, 14, 21, 2]}

    Args:
        tokens: int [n], n >= 4. BOS and EOS stay in the source where the window has them.
        rng: of the spans.
        spec: with sentinels, as many as `sizes` says; `rate` and `span` are read.
        draw: not used.

    Returns:
        `inputs targets` int32 [t], `loss_weights` float32 [t], `encoder_inputs` int32 [s].
    """
    tokens = np.asarray(tokens, np.int32)
    noise, spans = count(len(tokens), spec.options.rate, spec.options.span)
    vocabulary = spec.vocabulary
    starts, lengths = draw_spans(tokens, noise, spans, rng, vocabulary)
    return corrupted(tokens, starts, lengths, vocabulary.sentinels, vocabulary)


def count(n: int, rate: float, span: float) -> tuple[int, int]:
    """Returns how many of n tokens go into spans, and into how many.

    BOS, EOS and one token of text stay, and one between two spans.
    """
    noise = min(max(round(rate * n), 1), n - 3)
    return noise, min(max(round(noise / span), 1), noise, n - 1 - noise)


def draw_spans(
    tokens: np.ndarray, noise: int, spans: int, rng: np.random.Generator, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Returns starts and lengths of random spans of a window's text, at least one token apart."""
    text = inner(tokens, vocabulary)
    lengths = compose(noise, spans, rng)
    starts = text.start + place(lengths, text.stop - text.start - noise, 1, rng)
    return starts, lengths


def corrupted(
    tokens: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    sentinels: tuple[int, ...],
    vocabulary: Vocabulary,
) -> dict[str, np.ndarray]:
    """Returns the fields of a window without these spans.

    Raises:
        ValueError: there are fewer sentinels than spans; `lm.objectives.check` says so beforehand.
    """
    names = np.array(sentinels[: len(starts)], np.int32)
    if len(names) < len(starts):
        raise ValueError(f'{len(starts)} spans need as many sentinels, not {len(names)}')
    text = np.insert(tokens[places(starts, lengths)], np.cumsum(lengths) - lengths, names)
    return written(text, vocabulary) | {'encoder_inputs': replace(tokens, starts, lengths, names)}


def sizes(n: int, rate: float, span: float) -> tuple[int, int]:
    """Returns (t, s), exactly."""
    noise, spans = count(n, rate, span)
    return noise + spans + 1, n - noise + spans
