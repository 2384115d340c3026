"""A mixture of denoisers, of which the first token of the source says the mode."""

import functools
import re
from typing import NamedTuple

import numpy as np

from lm.errors import InputError
from lm.objectives.span_corruption import corrupted, count, draw_spans
from lm.objectives.span_corruption import sizes as corrupted_sizes
from lm.objectives.spec import Draw, Prompt, Spec
from lm.vocabulary import inner


class Denoiser(NamedTuple):
    """One way to take spans out of a text.

    Attributes:
        mode: R (regular), S (sequential: one span, at the end) or X (extreme).
        span: tokens, the mean length of spans; infinite for S.
        rate: the part of the text that is in spans.
    """

    mode: str
    span: float
    rate: float


MODES = 'RSX'
_NUMBER = r'(\d+\.?\d*|\.\d+)'
_DENOISER = re.compile(rf'(?:([RX]) {_NUMBER}|(S)) {_NUMBER}')


def ul2(
    tokens: np.ndarray, rng: np.random.Generator, spec: Spec, draw: Draw | None = None
) -> dict[str, np.ndarray]:
    """Returns the fields of a mixture of denoisers (Tay et al. 2023).

    `rng` draws one of `denoisers`, which works as `span_corruption` with its own span and rate, or for
    S with one span that ends the text. The last three sentinels are the mode tokens of R, S and X; the
    drawn one's begins the source.

    >>> ul2([1, 10, 11, 12, 13, 14, 15, 2], np.random.default_rng(2), spec)
    ... # denoisers 'S 0.25'; sentinels 20, 21, R 22, S 23, X 24
    {'inputs': [1, 20, 14, 15], 'targets': [20, 14, 15, 2], 'loss_weights': [1., 1., 1., 1.],
     'encoder_inputs': [23, 1, 10, 11, 12, 13, 20, 2]}

    Args:
        tokens: int [n], n >= 4.
        rng: of the denoiser and its spans.
        spec: with sentinels, as many as `sentinels` says; `denoisers` is read.
        draw: not used.

    Returns:
        `inputs targets` int32 [t], `loss_weights` float32 [t], `encoder_inputs` int32 [s].
    """
    tokens = np.asarray(tokens, np.int32)
    choices = parse(spec.options.denoisers)
    mode, span, rate = choices[rng.integers(len(choices))]
    noise, spans = count(len(tokens), rate, span)
    starts, lengths = draw_spans(tokens, noise, spans, rng, spec.vocabulary)
    if mode == 'S':
        starts = np.array([inner(tokens, spec.vocabulary).stop - noise])
    names = spec.vocabulary.sentinels[: -len(MODES)]
    fields = corrupted(tokens, starts, lengths, names, spec.vocabulary)
    source = np.concatenate([[_mode_token(mode, spec)], fields['encoder_inputs']]).astype(np.int32)
    return fields | {'encoder_inputs': source}


def prompt(spec: Spec) -> Prompt:
    """Returns how a text is given, to be continued: as a denoiser S has it, where one is drawn.

    >>> prompt(spec)  # denoisers 'S 0.25'; sentinels 20, 21, R 22, S 23, X 24
    Prompt(before=(23, 1), after=(20, 2), begun=(1, 20))
    """
    mode = min((d.mode for d in parse(spec.options.denoisers)), key=lambda mode: mode != 'S')
    bos, eos, missing = spec.vocabulary.bos, spec.vocabulary.eos, spec.vocabulary.sentinels[0]
    return Prompt((_mode_token(mode, spec), bos), (missing, eos), (bos, missing))


def _mode_token(mode: str, spec: Spec) -> int:
    return spec.vocabulary.sentinels[MODES.index(mode) - len(MODES)]


@functools.cache
def parse(denoisers: tuple[str, ...]) -> tuple[Denoiser, ...]:
    """Returns the denoisers of a config.

    >>> parse(('R 3 0.15', 'S 0.25'))
    (Denoiser('R', 3.0, 0.15), Denoiser('S', inf, 0.25))

    Raises:
        InputError: one cannot be read, or there is none.
    """
    found = []
    for text in denoisers or ('',):
        match = _DENOISER.fullmatch(text)
        if not match or not 0 < float(match[4]) < 1 or float(match[2] or 1) < 1:
            raise InputError(
                f"config.objective.denoisers: '{text}' is none. Write 'R 3 0.15' or 'X 8 0.5' (mean "
                "span >= 1, rate < 1) or 'S 0.25' (rate)."
            )
        mode, span = match[1] or match[3], float(match[2] or 'inf')
        found.append(Denoiser(mode, span, float(match[4])))
    return tuple(found)


def sizes(n: int, denoisers: tuple[str, ...]) -> tuple[int, int]:
    """Returns (t, s) at most, over the denoisers."""
    all_sizes = [corrupted_sizes(n, d.rate, d.span) for d in parse(denoisers)]
    return max(t for t, _ in all_sizes), 1 + max(s for _, s in all_sizes)


def sentinels(n: int, denoisers: tuple[str, ...]) -> int:
    """Returns how many sentinels a window of n tokens needs, with those of the modes."""
    return len(MODES) + max(count(n, d.rate, d.span)[1] for d in parse(denoisers))
