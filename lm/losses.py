"""Cross-entropy of next tokens, whole or in pieces.

A loss is a (sum, weight) pair, so that means over hosts, micro-batches and ragged last batches are
exact.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array, Metrics]:
    """Returns the weighted sum of losses, the sum of weights, and sums for reports.

    With two tokens to choose from and equal logits, each target costs log 2 nats:
    `cross_entropy(zeros([1, 3, 2]), zeros([1, 3], int), [[1, 1, 0]])` is
    `(1.386, 2.0, {'nats': 1.386, 'correct': 2.0})`.

    Args:
        logits: `[..., V]`; computed with in float32.
        targets: int32 `[...]`.
        weights: float32 `[...]`; 0 is no loss.
        label_smoothing: e; the target's probability is 1 - e, and e is spread over all V
            (Szegedy et al. 2015, https://arxiv.org/abs/1512.00567).
        z_loss: weight of log(Z)^2, Z the sum of the exponentials (PaLM, https://arxiv.org/abs/2204.02311).

    Returns:
        sum: float32 scalar, nats, with label smoothing and z-loss.
        weight: float32 scalar.
        metrics: `nats`, the sum without either (perplexity is exp(nats / weight)), and `correct`, the
            sum of weights where no logit is larger than the target's. Without gradients.
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = log_z - target_logits
    loss = nats
    if label_smoothing:
        mean_nats = log_z - jnp.mean(logits, axis=-1)
        loss = (1 - label_smoothing) * nats + label_smoothing * mean_nats
    if z_loss:
        loss += z_loss * log_z**2
    # The maximum is at hand from log_z; an argmax would cost as much as the rest of this function.
    correct = target_logits >= jnp.max(logits, axis=-1)
    metrics = {'nats': jnp.sum(weights * nats), 'correct': jnp.sum(weights * correct)}
    return jnp.sum(weights * loss), jnp.sum(weights), jax.lax.stop_gradient(metrics)


def chunked_cross_entropy(
    logits_fn: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunks: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array, Metrics]:
    """As `cross_entropy` of `logits_fn(hidden)`, whose `[B, T, V]` never exists as a whole.

    The logits of one piece of the positions are made at a time, and made again in the backward pass:
    one more product with the output matrix, for memory of 1 / chunks.

    Args:
        logits_fn: `[B, T / chunks, D] -> [B, T / chunks, V]`. May close over parameters, which get
            their gradients.
        hidden: `[B, T, D]`.
        targets: int32 `[B, T]`.
        weights: float32 `[B, T]`.
        chunks: how many pieces; a divisor of T, such as `chunks_for` finds. 1 is the plain form.
        label_smoothing: as in `cross_entropy`.
        z_loss: as in `cross_entropy`.

    Raises:
        ValueError: `chunks` does not divide T.
    """

    def piece(hidden: jax.Array, targets: jax.Array, weights: jax.Array):
        return cross_entropy(
            logits_fn(hidden), targets, weights, label_smoothing=label_smoothing, z_loss=z_loss
        )

    if chunks == 1:
        return piece(hidden, targets, weights)

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, jax.checkpoint(piece)(*inputs)), None

    inputs = tuple(_pieces(x, chunks) for x in (hidden, targets, weights))
    zero = jnp.zeros((), jnp.float32)
    total, _ = jax.lax.scan(add, (zero, zero, {'nats': zero, 'correct': zero}), inputs)
    return total


def token_nats(
    logits_fn: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    chunks: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns what each token costs by itself, -log p in nats, float32 `[B, T]`.

    And whether no token is likelier there, bool `[B, T]`.

    Args:
        logits_fn: as in `chunked_cross_entropy`.
        hidden: `[B, T, D]`.
        targets: int32 `[B, T]`.
        chunks: as in `chunked_cross_entropy`.
    """

    def piece(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(inputs[0]).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, inputs[1][..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen, chosen >= jnp.max(logits, axis=-1)

    pieces = jax.lax.map(piece, (_pieces(hidden, chunks), _pieces(targets, chunks)))
    nats, likeliest = (jnp.moveaxis(x, 0, 2).reshape(targets.shape) for x in pieces)
    return nats, likeliest


def _pieces(x: jax.Array, chunks: int) -> jax.Array:
    """`[B, T, ...] -> [C, B, T / C, ...]`. Piece c has the positions c, c + C, c + 2C, ..., so that
    each is spread over all of T, and T stays split over the devices of the `sequence` axis."""
    if x.shape[1] % chunks:
        raise ValueError(f'{chunks} chunks do not divide {x.shape[1]} positions.')
    x = x.reshape(x.shape[0], x.shape[1] // chunks, chunks, *x.shape[2:])
    return jnp.moveaxis(x, 2, 0)


def chunks_for(batch: int, length: int, vocab: int, max_mb: int) -> int:
    """Returns the least divisor C of T for which float32 logits `[B, T / C, V]` take at most `max_mb`.

    Where none is enough it is T: one position at a time.

    Args:
        batch: B, the rows on one device.
        length: T, the positions on one device.
        vocab: V.
        max_mb: in units of 10^6 bytes.
    """
    for chunks in range(1, length):
        if length % chunks == 0 and 4 * batch * vocab * length // chunks <= max_mb * 1e6:
            return chunks
    return length
