"""How likely a model finds continuations: what choices are made by, and benchmarks of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lm import decode, losses, mesh
from lm.models import Decoder, EncoderDecoder
from lm.perplexity import bar
from lm.run import Run, prompt_of
from lm.scores import token_costs
from lm.terms.loss import Batch

# Tokens of a batch for each device that has rows of its own, and the most rows there.
_TOKENS, _ROWS = 1 << 14, 64


class Likelihood(NamedTuple):
    """How likely a continuation is.

    Attributes:
        log_p: the sum of its tokens' log probabilities, nats.
        greedy: whether each of them is the likeliest in its place.
    """

    log_p: float
    greedy: bool


def continuations(
    run: Run,
    params: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    rows: int = 0,
    label: str = 'score',
) -> list[Likelihood]:
    """Returns how likely each continuation is after its context.

    What is longer than the model's context loses its beginning.

    Args:
        run: of a decoder, or an encoder-decoder, which reads the context and writes the continuation.
        params: its parameters.
        pairs: token ids of contexts, special ones included, and of continuations; at least one of each.
        rows: of a batch; 0 is as many as make 16,384 tokens, at most 64, on each device.
        label: of the progress bar.
    """
    model = run.steps.model
    if not isinstance(model, Decoder | EncoderDecoder):
        raise TypeError('a continuation has a likelihood with decoders and encoder-decoders.')
    shards = mesh.row_shards(run.mesh)
    if isinstance(model, EncoderDecoder):
        begun = prompt_of(run.config, run.tokenizer).begun
        written = [[*begun, *continuation] for _, continuation in pairs]
    else:
        written = [[*context, *continuation] for context, continuation in pairs]
    written = [tokens[-model.max_length - 1 :] for tokens in written]
    found = np.zeros((2, len(pairs)))
    batches = _batches([len(tokens) - 1 for tokens in written], model.max_length, rows, shards)
    with jax.set_mesh(run.mesh):
        for places, count in bar(batches, len(batches), label):
            batch = _batch(run, [pairs[i] for i in places], [written[i] for i in places], count)
            chunks = losses.chunks_for(
                count // shards,
                batch['inputs'].shape[1],
                model.padded_vocab_size,
                run.config.loss.max_logits_mb,
            )
            nats, likeliest = token_costs(
                params,
                batch,
                model=model,
                segments=isinstance(model, EncoderDecoder),
                chunks=chunks,
            )
            found[0, places] = -nats.sum(axis=1)[: len(places)]
            right = likeliest | (batch['loss_weights'] == 0)
            found[1, places] = right.all(axis=1)[: len(places)]
    return [Likelihood(float(log_p), bool(greedy)) for log_p, greedy in found.T]


def _batches(
    lengths: Sequence[int], most: int, rows: int, shards: int
) -> list[tuple[list[int], int]]:
    """Returns the places of each batch, those of the longest first, and its rows.

    Args:
        lengths: tokens of each.
        most: M, the model's context.
        rows: of a batch on all devices, or 0.
        shards: in which so many parts the rows are split.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = []
    while order:
        width = decode.padded([[0] * lengths[order[0]]], most)[0].shape[1]
        count = -(-rows // shards) or max(min(_TOKENS // width, _ROWS), 1)
        count *= shards
        batches.append((order[:count], count))
        order = order[count:]
    return batches


def _batch(
    run: Run,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    written: Sequence[Sequence[int]],
    rows: int,
) -> Batch:
    """Returns a batch of so many rows, the last ones empty; the loss is that of the continuations."""
    model = run.steps.model
    empty = [[0]] * (rows - len(pairs))
    inputs, lengths = decode.padded([*(row[:-1] for row in written), *empty], model.max_length)
    targets, _ = decode.padded([*(row[1:] for row in written), *empty], model.max_length)
    place = np.arange(inputs.shape[1])
    sizes = np.array([len(continuation) for _, continuation in pairs] + [0] * len(empty))
    ends = lengths[:, None]
    counts = (place < ends) & (place >= ends - sizes[:, None])
    batch = {
        'inputs': inputs,
        'targets': targets,
        'segment_ids': (place < ends).astype(np.int32),
        'loss_weights': counts.astype(np.float32),
    }
    if isinstance(model, EncoderDecoder):
        sources = [list(context)[-model.max_source :] for context, _ in pairs]
        tokens, lengths = decode.padded([*sources, *empty], model.max_source)
        there = np.arange(tokens.shape[1]) < lengths[:, None]
        batch |= {'encoder_inputs': tokens, 'encoder_segment_ids': there.astype(np.int32)}
    return batch
