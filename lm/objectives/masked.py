"""Say what hidden tokens were, from both sides."""

import numpy as np

from lm.config import ObjectiveConfig
from lm.errors import lookup
from lm.objectives.pairs import joined, labelled
from lm.objectives.spans import fill, place, places
from lm.objectives.spec import Draw, Spec
from lm.vocabulary import inner

Chosen = tuple[np.ndarray, np.ndarray]
Seen = tuple[np.ndarray, dict[str, np.ndarray]]


def masked(
    tokens: np.ndarray, rng: np.random.Generator, spec: Spec, draw: Draw | None = None
) -> dict[str, np.ndarray]:
    """Returns the fields of masked language modelling (Devlin et al. 2019).

    Of m tokens that are not BOS or EOS, round(rate * m) are chosen, at least 1 and at most
    `max_predictions`: single ones, whole words (its authors' later release), or spans (Joshi et al.
    2020). A chosen one becomes the mask, or with `random_rate` a random token of text, or with `keep_rate`
    stays; all of a span alike. They are chosen anew each time (Liu et al. 2019).

    >>> masked([1, 10, 11, 12, 13, 2], np.random.default_rng(2), spec)  # rate 0.5, mask 20
    {'inputs': [1, 10, 20, 8, 13, 2], 'targets': [1, 10, 11, 12, 13, 2],
     'loss_weights': [0., 0., 1., 1., 0., 0.]}

    With `pairs` the text is cut in two, after a sentence where there is one. `next`: half of the
    second texts are of another document, label 1 (Devlin et al. 2019). `order`: half of the pairs are
    swapped, label 1 (Lan et al. 2020). A sentence that the window cuts off would tell them apart: texts
    in order lose it, and another document's begins with a sentence too.

    >>> masked([1, 10, 11, 12, 2], np.random.default_rng(2), spec)  # pairs 'order'
    {'inputs': [1, 20, 2, 10, 11, 2], 'targets': [1, 12, 2, 10, 11, 2],
     'loss_weights': [0., 1., 0., 0., 0., 0.], 'token_types': [0, 0, 0, 1, 1, 1],
     'labels': [1, 0, 0, 0, 0, 0], 'label_weights': [1., 0., 0., 0., 0., 0.]}

    Args:
        tokens: int [n].
        rng: of all that is random.
        spec: with a mask.
        draw: of another document's tokens; only read for `next`.

    Returns:
        `inputs targets` int32 [t], `loss_weights` float32 [t]; `targets` is the text. With
        pairs also `token_types labels` int32 [t] and `label_weights` float32 [t].
    """
    options, vocabulary = spec.options, spec.vocabulary
    tokens, more = lookup(PAIRS, options.pairs, 'config.objective.pairs')(
        np.asarray(tokens, np.int32), rng, spec, draw
    )
    maskable = np.flatnonzero((tokens != vocabulary.bos) & (tokens != vocabulary.eos))
    most = min(len(maskable), options.max_predictions or len(maskable))
    number = min(most, max(1, round(options.rate * len(maskable))))
    choose = lookup(UNITS, options.unit, 'config.objective.unit')
    chosen, group = choose(tokens, maskable, number, rng, spec)
    chosen, group = maskable[chosen[:most]], group[:most]

    fate = rng.random(len(group))[group]  # The same for all of a group.
    random = chosen[fate < options.random_rate]
    hidden = chosen[fate >= options.random_rate + options.keep_rate]
    inputs, weights = tokens.copy(), np.zeros(len(tokens), np.float32)
    inputs[hidden] = vocabulary.mask
    inputs[random] = vocabulary.text[rng.integers(len(vocabulary.text), size=len(random))]
    weights[chosen] = 1
    return {'inputs': inputs, 'targets': tokens, 'loss_weights': weights, **more}


def _tokens(
    tokens: np.ndarray, maskable: np.ndarray, number: int, rng: np.random.Generator, spec: Spec
) -> Chosen:
    return rng.choice(len(maskable), number, replace=False), np.arange(number)


def _words(
    tokens: np.ndarray, maskable: np.ndarray, number: int, rng: np.random.Generator, spec: Spec
) -> Chosen:
    """Takes words in random order while they fit; the shortest where none does."""
    starts = np.flatnonzero(spec.vocabulary.word_starts(tokens)[maskable])
    sizes = np.diff(starts, append=len(maskable))
    room, words = number, []
    for word in rng.permutation(len(sizes)).tolist():
        if sizes[word] <= room:
            words.append(word)
            room -= sizes[word]
            if not room:
                break
    if number and not words:
        words = [np.argmin(sizes)]
    words = np.array(words, int)
    chosen = places(starts[words], sizes[words])
    return chosen, np.arange(len(chosen))


def _spans(
    tokens: np.ndarray, maskable: np.ndarray, number: int, rng: np.random.Generator, spec: Spec
) -> Chosen:
    """Lengths are geometric, drawn again above `max_span`. A span may go over an EOS, which stays."""
    longest = np.arange(1, spec.options.max_span + 1)
    likely = (1 - 1 / spec.options.span) ** (longest - 1)
    lengths = fill(rng.choice(longest, number, p=likely / likely.sum()), number)
    lengths = rng.permutation(lengths)  # The one that was cut stands anywhere.
    starts = place(lengths, len(maskable) - number, 0, rng)
    return places(starts, lengths), np.repeat(np.arange(len(lengths)), lengths)


# Unit -> the function of (tokens [t], maskable places [m], number, rng, spec) that chooses: indices into
# `maskable`, int [chosen], and which of them share a fate, int [chosen] below their number.
UNITS = {'token': _tokens, 'word': _words, 'span': _spans}


def _one(tokens: np.ndarray, rng: np.random.Generator, spec: Spec, draw: Draw | None) -> Seen:
    return tokens, {}


def _next(tokens: np.ndarray, rng: np.random.Generator, spec: Spec, draw: Draw | None) -> Seen:
    first, second = _halves(tokens[inner(tokens, spec.vocabulary)], rng, spec)
    label = int(rng.random() < 0.5)
    if label:
        # Like the text that follows, it begins with a sentence and ends anywhere.
        other = np.asarray(draw(rng, spec.length), np.int32)
        text, places = _sentences(other, spec)
        start = next((place for place in places if place < text.stop), text.start)
        second = other[start : text.stop][: len(second)]
    return _pair(first, second, label, spec)


def _order(tokens: np.ndarray, rng: np.random.Generator, spec: Spec, draw: Draw | None) -> Seen:
    # A sentence that the window cut off would tell which text is first.
    first, second = _halves(tokens[_whole(tokens, spec)], rng, spec)
    label = int(rng.random() < 0.5)
    pair = (second, first) if label else (first, second)
    return _pair(*pair, label, spec)


# What the model sees: one text, or two of which it also tells something.
PAIRS = {'': _one, 'next': _next, 'order': _order}


def _sentences(tokens: np.ndarray, spec: Spec) -> tuple[slice, list[int]]:
    """Returns where a window's text is, and the places in it where a sentence is known to begin or end."""
    text = inner(tokens, spec.vocabulary)
    places = {*(text.start + _ends(tokens[text], spec)).tolist()}
    if text.start > 0:  # After the document's BOS.
        places.add(text.start)
    if text.stop < len(tokens):  # Before its EOS.
        places.add(text.stop)
    return text, sorted(places)


def _ends(text: np.ndarray, spec: Spec) -> np.ndarray:
    """Returns where sentences end inside of a text: after the last mark, where a newline follows a dot."""
    marks = spec.vocabulary.ends_sentence[text]
    return np.flatnonzero(marks[:-1] & ~marks[1:]) + 1


def _whole(tokens: np.ndarray, spec: Spec) -> slice:
    """Returns where a window's whole sentences are; all of its text where they are less than two."""
    text, places = _sentences(tokens, spec)
    return slice(places[0], places[-1]) if len(places) > 2 else text


def _halves(text: np.ndarray, rng: np.random.Generator, spec: Spec) -> list[np.ndarray]:
    """Cuts a text in two, of at least one token each, after any of its sentences; else anywhere."""
    ends = _ends(text, spec)
    cuts = ends if len(ends) else np.arange(1, max(2, len(text)))
    return np.split(text, [rng.choice(cuts)])


def _pair(first: np.ndarray, second: np.ndarray, label: int, spec: Spec) -> Seen:
    tokens, token_types = joined(first, second, spec.vocabulary)
    known = label if len(first) and len(second) else None
    return tokens, {'token_types': token_types, **labelled(known, len(tokens))}


def most_masked(n: int, options: ObjectiveConfig) -> int:
    """Returns the most tokens that are masked in a window of n."""
    if options.max_predictions:
        return min(n, options.max_predictions)
    # A word, or a span, is not cut for the rate's sake.
    return max(1, round(options.rate * n)) if options.unit == 'token' else n
