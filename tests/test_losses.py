"""Cross-entropy against closed forms, and its pieces against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.losses import chunked_cross_entropy, chunks_for, cross_entropy

OPTIONS = [{}, {'label_smoothing': 0.1}, {'z_loss': 1e-2}, {'label_smoothing': 0.2, 'z_loss': 1e-3}]


def problem(batch=2, length=12, width=5, vocab=17):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(batch, length, width)).astype(np.float32)
    kernel = rng.normal(size=(width, vocab)).astype(np.float32)
    targets = rng.integers(vocab, size=(batch, length))
    weights = rng.integers(2, size=(batch, length)).astype(np.float32)
    return hidden, kernel, targets, weights


def test_equal_logits_cost_log_v():
    total, weight, metrics = cross_entropy(
        jnp.zeros((1, 3, 2)), jnp.zeros((1, 3), jnp.int32), jnp.array([[1.0, 1.0, 0.0]])
    )
    np.testing.assert_allclose(total, 2 * np.log(2), rtol=1e-6)
    assert weight == 2
    np.testing.assert_allclose(metrics['nats'], 2 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize('options', OPTIONS)
def test_definition(options):
    """Against probabilities written out in float64."""
    hidden, kernel, targets, weights = problem()
    logits = hidden @ kernel
    z = np.exp(logits.astype(np.float64)).sum(-1)
    log_p = logits - np.log(z)[..., None]
    e = options.get('label_smoothing', 0.0)
    wanted = e / 17 + (1 - e) * np.eye(17)[targets]  # [B, T, V], the smoothed distribution
    losses = -(wanted * log_p).sum(-1) + options.get('z_loss', 0.0) * np.log(z) ** 2
    nats = -(np.eye(17)[targets] * log_p).sum(-1)
    total, weight, metrics = cross_entropy(logits, targets, weights, **options)
    np.testing.assert_allclose(total, (losses * weights).sum(), rtol=1e-6)
    np.testing.assert_allclose(weight, weights.sum())
    np.testing.assert_allclose(metrics['nats'], (nats * weights).sum(), rtol=1e-6)
    right = (logits.argmax(-1) == targets) * weights
    np.testing.assert_allclose(metrics['correct'], right.sum())


def test_gradient_is_probability_minus_one_at_the_target():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    grad = jax.grad(lambda x: cross_entropy(x, jnp.array([0]), jnp.array([2.0]))[0])(logits)
    np.testing.assert_allclose(grad, 2 * np.array([[-0.5, 0.25, 0.25]]), atol=1e-6)


def test_large_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4, 0.0]])
    total, _, _ = cross_entropy(logits, jnp.array([1]), jnp.array([1.0]))
    np.testing.assert_allclose(total, 2e4)


def test_correct_counts_weights():
    logits = jnp.array([[3.0, 1.0], [0.0, 2.0], [5.0, 1.0]])
    _, _, metrics = cross_entropy(logits, jnp.array([0, 0, 0]), jnp.array([1.0, 1.0, 0.0]))
    assert metrics['correct'] == 1


@pytest.mark.first_quick
@pytest.mark.parametrize('options', OPTIONS[::-1])
@pytest.mark.parametrize('chunks', [3, 1, 2, 12])
def test_chunks_equal_the_whole_in_values_and_gradients(chunks, options):
    hidden, kernel, targets, weights = problem()

    def whole(hidden, kernel):
        total, *rest = cross_entropy(hidden @ kernel, targets, weights, **options)
        return total, rest

    def pieces(hidden, kernel):
        total, *rest = chunked_cross_entropy(
            lambda x: x @ kernel, hidden, targets, weights, chunks=chunks, **options
        )
        return total, rest

    want = jax.value_and_grad(whole, argnums=(0, 1), has_aux=True)(hidden, kernel)
    got = jax.value_and_grad(pieces, argnums=(0, 1), has_aux=True)(hidden, kernel)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6)


def test_chunks_take_less_memory():
    """The whole [B, T, V] never exists: the temporary memory stays below one such buffer."""
    hidden, kernel, targets, weights = problem(batch=2, length=64, width=8, vocab=4096)

    def memory(chunks):
        def loss(hidden, kernel):
            return chunked_cross_entropy(
                lambda x: x @ kernel, hidden, targets, weights, chunks=chunks
            )[0]

        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return step.lower(hidden, kernel).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 2 * 64 * 4096
    assert memory(1) >= logits
    assert memory(16) < logits / 2


def test_chunks_must_divide():
    hidden, kernel, targets, weights = problem()
    with pytest.raises(ValueError, match='5 chunks do not divide 12'):
        chunked_cross_entropy(lambda x: x @ kernel, hidden, targets, weights, chunks=5)


@pytest.mark.parametrize(
    ('batch', 'length', 'vocab', 'max_mb', 'chunks'),
    [
        (1, 4, 250_000, 4, 1),  # 4 MB fit
        (1, 4, 250_001, 4, 2),
        (1, 4, 250_000, 1, 4),
        (2, 6, 250_000, 4, 3),  # 12 MB: pieces of 2 positions
        (1, 7, 250_000, 2, 7),  # 7 has no other divisor
        (9, 4, 250_000, 1, 4),  # nothing is enough
    ],
)
def test_chunks_for(batch, length, vocab, max_mb, chunks):
    assert chunks_for(batch, length, vocab, max_mb) == chunks
