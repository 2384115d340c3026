"""The log probability of each of many texts."""

import functools
from typing import Any

import jax
import numpy as np

from lm import losses, mesh
from lm import run as runs
from lm.data import features, pipeline
from lm.models import Model
from lm.perplexity import bar
from lm.run import Run
from lm.terms.loss import Batch, hidden


def log_probabilities(
    run: Run, params: Any, split: features.TokenizedSplit, label: str = 'score'
) -> np.ndarray:
    """Returns log p of each document, its end included, or of what is written in each pair; nats.

    A document that is longer than a window is the sum of its windows, as in perplexity.

    Args:
        run: of an objective that predicts every token of a text once (causal, seq2seq).
        params: its parameters.
        split: of texts, or of pairs, such as `features.from_texts` gives.
        label: of the progress bar.

    Returns:
        float64 `[documents]`, or `[pairs]`.
    """
    config = run.config
    rows = runs.evaluation_rows(config)
    dataset = pipeline.eval_dataset(split, config.data, run.objective, 0, rows)
    packed = pipeline.pack_split(split, run.objective, config.data.packing)
    costs_of = functools.partial(
        token_costs,
        params,
        model=run.steps.model,
        segments=config.data.packing or run.objective.source_length > 0,
        chunks=losses.chunks_for(
            -(-rows // mesh.row_shards(run.mesh)),
            config.data.length,
            run.steps.model.padded_vocab_size,
            config.loss.max_logits_mb,
        ),
    )
    found = np.zeros(split.num_documents // (1 + split.paired))
    with jax.set_mesh(run.mesh):
        for number in bar(range(len(dataset)), len(dataset), label):
            batch = dataset[number]
            costs, _ = costs_of(batch)
            filled = packed.rows.offsets[number * rows :][: rows + 1]
            for row in range(len(filled) - 1):
                windows = packed.rows[number * rows + row]
                # Window i of a row is its segment i + 1.
                sums = np.bincount(batch['segment_ids'][row], costs[row], len(windows) + 1)
                np.subtract.at(found, packed.windows.document[windows], sums[1:])
    return found


def token_costs(
    params: Any, batch: Batch, *, model: Model, segments: bool, chunks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what each target costs, nats, 0 where it does not count; and whether it is the likeliest.

    Args:
        params: the model's.
        batch: fields `[B, T]`.
        model: a decoder or an encoder-decoder.
        segments: whether rows hold more than one text, or padding that tokens would see.
        chunks: in how many pieces logits are computed; see `losses.chunks_for`.

    Returns:
        float64 `[B, T]`, bool `[B, T]`.
    """
    nats, likeliest = jax.device_get(
        _costs(params, batch, model=model, segments=segments, chunks=chunks)
    )
    return nats.astype(np.float64), likeliest


@functools.partial(jax.jit, static_argnames=('model', 'segments', 'chunks'))
def _costs(
    params: Any, batch: Batch, *, model: Model, segments: bool, chunks: int
) -> tuple[jax.Array, jax.Array]:
    batch = {name: mesh.constrain(x, (mesh.ROWS, 'sequence')) for name, x in batch.items()}
    vectors, _ = hidden(model, params, batch, None, segments)
    logits = functools.partial(model.apply, {'params': params}, method='logits')
    nats, likeliest = losses.token_nats(logits, vectors, batch['targets'], chunks)
    found = nats * batch['loss_weights'], likeliest
    return tuple(mesh.constrain(x, (None, None)) for x in found)
