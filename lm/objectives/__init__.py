"""Objectives: pure host functions from tokens to the fields of a batch.

`fields = objective(tokens, rng, spec, draw)`, the same for the same arguments:

- `tokens` int [n] is a window of one document. A stored document is BOS, its tokens, EOS; a window may
  begin with the one and end with the other, or have neither where it is cut out of a long document.
  They are never hidden.
- Objectives of whole texts take a tuple of one or two instead, and those of labels (that tuple, label).
- `rng` is a numpy Generator, its own for each window, so that the result depends on (seed, index) only.
- `spec` is a `Spec`: the config, the vocabulary, the lengths.
- `draw(rng, n)` gives at most n tokens of a window of a random other document. Only `masked` with
  `pairs` = next asks for it.

The fields are arrays [t], which `lm.data.pack.assemble` puts into rows: `inputs targets` int32,
`loss_weights` float32, 0 for no loss; and where the objective has them `token_types` int32 (0 the first
text, 1 the second), `in_prefix` bool, `order` int32 (the rank in a permutation), `labels` int32 with
`label_weights` float32 (a label of the whole sequence stands at its first token). For encoder-decoders
there is `encoder_inputs` int32 [s].
"""

import bisect
import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from lm.config import ObjectiveConfig, tasks_as_dicts
from lm.errors import InputError, lookup
from lm.objectives.causal import causal
from lm.objectives.classification import class_of, classification, value_of
from lm.objectives.contrastive import contrastive
from lm.objectives.denoising import NOISES, denoising
from lm.objectives.masked import PAIRS, UNITS, masked, most_masked
from lm.objectives.permutation import permutation
from lm.objectives.prefix import prefix
from lm.objectives.replaced import replaced
from lm.objectives.seq2seq import seq2seq
from lm.objectives.span_corruption import count, span_corruption
from lm.objectives.span_corruption import sizes as corrupted_sizes
from lm.objectives.spec import Draw as Draw
from lm.objectives.spec import Prompt as Prompt
from lm.objectives.spec import Spec as Spec
from lm.objectives.spec import prompt as whole_text
from lm.objectives.ul2 import parse, ul2
from lm.objectives.ul2 import prompt as to_be_continued
from lm.objectives.ul2 import sentinels as mixture_sentinels
from lm.objectives.ul2 import sizes as mixture_sizes


@dataclasses.dataclass(frozen=True)
class Objective:
    """An entry of the table.

    Attributes:
        function: `(tokens, rng, spec, draw=None) -> fields`.
        architectures: entries of `config.model.architecture` that it can train.
        sizes: (n, spec) -> (t, s), the most tokens that a window of n makes of targets and of sources
            (0 without an encoder beside); never less for a longer window.
        least: n, the shortest window that there is something to learn from.
        overlap: tokens that a window shares with the next one; 1 where n tokens make n - 1 targets.
        needs: what the vocabulary must have, of 'mask' and 'sentinels'.
        sentinels: (n, spec) -> the number of sentinels that a window of n tokens needs at most.
        takes: what a row is made of: a 'window' of tokens; or instead of that a tuple of whole texts,
            one ('text') or two ('pair'), where n is the length of the longer one.
        label: (a label as the source has it, options) -> what is learnt of it. The function then takes
            (texts, that) instead of tokens.
        writes: the targets are a text of their own, written from another.
        predictions: (n, options) -> the most tokens of a window of n, of targets, that count in the loss.
        labels: options -> whether texts have labels; a row then holds one text.
        slides: options -> whether a window's targets may be scored in part.
        whole: every token of the text is predicted once.
        sees: what a prediction may know: 'before' it, that and the 'prefix', what is of lower 'ranks', or
            'both' sides of it.
        takes_codes: control codes (`lm.codes`) may stand before the text of a window.
        measured: what the loss is of, for a report; '' where `whole` says it.
        of_tokens: the loss is that of telling tokens, nats a token; exp of it is a perplexity.
        in_batch: a text is told from the others of its batch, so that its size makes it easy or hard.
        generates: what it trains writes: the rest of a text, or another text.
        prompt: spec -> how an encoder-decoder of it is given a text.
    """

    function: Callable[..., dict[str, np.ndarray]]
    architectures: frozenset[str]
    sizes: Callable[[int, Spec], tuple[int, int]]
    least: int
    overlap: int = 0
    needs: frozenset[str] = frozenset()
    sentinels: Callable[[int, Spec], int] = lambda n, spec: 0
    takes: frozenset[str] = frozenset({'window'})
    label: Callable[[str, ObjectiveConfig], int | float] | None = None
    writes: bool = False
    predictions: Callable[[int, ObjectiveConfig], int] = lambda n, options: n
    labels: Callable[[ObjectiveConfig], bool] = lambda options: False
    slides: Callable[[ObjectiveConfig], bool] = lambda options: False
    whole: bool = False
    sees: str = 'before'
    takes_codes: bool = False
    measured: str = ''
    of_tokens: bool = True
    in_batch: bool = False
    generates: bool = False
    prompt: Callable[[Spec], Prompt] = whole_text

    @property
    def of_texts(self) -> bool:
        """What is predicted is of whole texts; no token counts in the loss."""
        return 'window' not in self.takes and not self.writes


DECODER, ENCODER = frozenset({'decoder'}), frozenset({'encoder'})
ENCODER_DECODER = frozenset({'encoder_decoder'})
PAIR = frozenset({'pair'})
MASK, SENTINELS = frozenset({'mask'}), frozenset({'sentinels'})

OBJECTIVES: dict[str, Objective] = {
    'causal': Objective(
        causal,
        DECODER,
        lambda n, spec: (n - 1, 0),
        least=2,
        overlap=1,
        slides=lambda options: True,
        whole=True,
        takes_codes=True,
        generates=True,
    ),
    'prefix': Objective(
        prefix,
        DECODER,
        lambda n, spec: (n - 1, 0),
        least=3,
        overlap=1,
        slides=lambda options: True,
        sees='prefix',
        takes_codes=True,
        measured='These stand after a prefix of random length.',
        generates=True,
    ),
    'masked': Objective(
        masked,
        ENCODER,
        lambda n, spec: (n + 3 * bool(spec.options.pairs), 0),
        least=4,
        needs=MASK,
        predictions=most_masked,
        labels=lambda options: bool(options.pairs),
        slides=lambda options: not options.pairs,
        sees='both',
        measured='These are the masked ones, which see all that is not masked.',
    ),
    'permutation': Objective(
        permutation,
        ENCODER,
        lambda n, spec: (n, 0),
        least=4,
        predictions=lambda n, options: n // options.partial + 2,  # The last context rounds up.
        sees='ranks',
        measured='These come in a random order, and see what came before them in it.',
    ),
    'replaced': Objective(
        replaced,
        ENCODER,
        lambda n, spec: (n, 0),
        least=4,
        needs=MASK,
        predictions=most_masked,
        sees='both',
        measured='These are all: for each it says whether the generator made it up, in nats a token.',
        of_tokens=False,
    ),
    'span_corruption': Objective(
        span_corruption,
        ENCODER_DECODER,
        lambda n, spec: corrupted_sizes(n, spec.options.rate, spec.options.span),
        least=4,
        needs=SENTINELS,
        sentinels=lambda n, spec: count(n, spec.options.rate, spec.options.span)[1],
        measured='These are the hidden spans and what names them.',
    ),
    'ul2': Objective(
        ul2,
        ENCODER_DECODER,
        lambda n, spec: mixture_sizes(n, spec.options.denoisers),
        least=4,
        needs=SENTINELS,
        sentinels=lambda n, spec: mixture_sentinels(n, spec.options.denoisers),
        measured='These are the hidden spans and what names them.',
        generates=True,
        prompt=to_be_continued,
    ),
    'denoising': Objective(
        denoising,
        ENCODER_DECODER,
        lambda n, spec: (n + 1, n),
        least=4,
        needs=MASK,
        measured='These are the whole text, rebuilt from a noised one.',
    ),
    'seq2seq': Objective(
        seq2seq,
        ENCODER_DECODER,
        lambda n, spec: (n + 1, n + 1 + len(spec.vocabulary.before)),
        least=1,
        takes=PAIR,
        writes=True,
        whole=True,
        generates=True,
        prompt=lambda spec: whole_text(spec)._replace(before=spec.vocabulary.before),
    ),
    'classification': Objective(
        classification,
        ENCODER,
        lambda n, spec: (2 * n + 3, 0),
        least=1,
        takes=PAIR | {'text'},
        label=class_of,
        labels=lambda options: True,
        sees='both',
        of_tokens=False,
    ),
    'similarity': Objective(
        classification,
        ENCODER,
        lambda n, spec: (2 * n + 3, 0),
        least=1,
        takes=PAIR,
        label=value_of,
        labels=lambda options: True,
        sees='both',
        of_tokens=False,
    ),
    'contrastive': Objective(
        contrastive,
        ENCODER,
        lambda n, spec: (2 * n + 4, 0),
        least=1,
        takes=PAIR,
        labels=lambda options: True,
        sees='both',
        of_tokens=False,
        in_batch=True,
    ),
}


def loss_of_tokens(config: Mapping[str, Any]) -> bool:
    """Returns whether the loss that a run logs is nats a token, so that exp of it is a perplexity.

    With several tasks it is all that is minimised: each of them must be of tokens, without a term for
    labels beside, and nothing added for training.

    Args:
        config: as nested dicts.
    """
    parts = tasks_as_dicts(config).values()
    entries = [(OBJECTIVES[part['objective']['name']], part['objective']) for part in parts]
    if not all(entry.of_tokens for entry, _ in entries):
        return False
    added = config['loss']['label_smoothing'] or config['loss']['z_loss']
    labels = any(entry.labels(SimpleNamespace(**options)) for entry, options in entries)
    return not config['tasks'] or not (added or labels)


def window(objective: Objective, spec: Spec) -> int:
    """Returns the most tokens of a window whose fields are no longer than T and S.

    Raises:
        InputError: not even the least window's are.
    """

    def too_long(n: int) -> bool:
        targets, sources = objective.sizes(n, spec)
        return targets > spec.length or sources > spec.source_length

    least = objective.least
    if too_long(least):
        targets, sources = objective.sizes(least, spec)
        raise InputError(
            f'config.data.length = {spec.length} (and {spec.source_length} for sources) is too short for '
            f"config.objective.name = '{spec.options.name}': a text of {least} tokens, the least that "
            f'it learns from, makes {targets} targets and {sources} tokens of source.'
        )
    most = least
    while not too_long(2 * most):
        most *= 2
    return most - 1 + bisect.bisect_left(range(most, 2 * most), True, key=too_long)


def check(name: str, architecture: str, spec: Spec) -> None:
    """Checks that an objective, its options, a model and a vocabulary go together.

    Args:
        name: of the objective, `config.objective.name`.
        architecture: `config.model.architecture`.
        spec: what the objective will be called with.

    Raises:
        InputError: they do not; the key to set is named.
    """
    objective = lookup(OBJECTIVES, name, 'config.objective.name')
    if architecture not in objective.architectures:
        others = [key for key, other in OBJECTIVES.items() if architecture in other.architectures]
        right = ' or '.join(f"'{choice}'" for choice in sorted(objective.architectures))
        raise InputError(
            f"config.objective.name = '{name}' needs config.model.architecture = {right}, not "
            f"'{architecture}'; objectives of that one are: {', '.join(others)}."
        )
    options, vocabulary = spec.options, spec.vocabulary
    lookup(UNITS, options.unit, 'config.objective.unit')
    lookup(PAIRS, options.pairs, 'config.objective.pairs')
    for noise in options.noise:
        lookup(NOISES, noise, 'config.objective.noise')
    parse(options.denoisers)
    if (both := options.random_rate + options.keep_rate) > 1:
        raise InputError(
            f'config.objective.random_rate and keep_rate are {both:g} together; the most is 1.'
        )
    if vocabulary.codes and not objective.takes_codes:
        right = ' or '.join(f"'{key}'" for key, other in OBJECTIVES.items() if other.takes_codes)
        raise InputError(
            f"config.tokenizer.codes are for config.objective.name = {right}, not '{name}'; set it to ()."
        )
    if 'mask' in objective.needs and vocabulary.mask < 0:
        raise InputError(
            f"config.objective.name = '{name}' needs a mask token: set config.tokenizer.mask = True."
        )
    size = window(objective, spec)
    if len(vocabulary.sentinels) < (needed := objective.sentinels(size, spec)):
        raise InputError(
            f"config.objective.name = '{name}' needs {needed} sentinels for windows of {size} tokens: "
            f'set config.tokenizer.sentinels = {needed}, not {len(vocabulary.sentinels)}.'
        )
