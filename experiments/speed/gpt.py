"""The model that all contestants are: GPT-2's layers, with the same weights, on the same tokens.

Six layers, 384 wide, 6 heads, 256 tokens: learned positions, LayerNorm before each part, biases, GELU in
its tanh form, the output matrix tied to the embedding, no dropout. The optimizer: the gradient clipped to
a norm of 1, AdamW (0.9, 0.95, 1e-8) with a decay of 0.1 on matrices, a learning rate of 1e-3.
"""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

LEARNING_RATE, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
PROOF_STEPS = 3  # Steps on one batch, whose losses prove that contestants do the same work.


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes. V `vocab`, N `layers`, D `width`, H `heads`, T `length`."""

    layers: int = 6
    width: int = 384
    heads: int = 6
    length: int = 256
    vocab: int = 8192

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(array.size for array in weights(self).values())

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of a training step: 6 a parameter in a product, and attention's.

        Of attention's square of T x T the half that is not masked counts.
        """
        matrices = 12 * self.layers * self.width**2 + self.vocab * self.width
        return 6 * matrices + 6 * self.layers * self.length * self.width


def weights(shape: Shape) -> dict[str, np.ndarray]:
    """Returns the initial weights, float32, with a layer axis N in front of those of the layers.

    Matrices map from their first axis to their second: `x @ w`. `qkv` is `[N, D, 3 D]`, queries first.
    """
    rng = np.random.default_rng(0)
    n, d = shape.layers, shape.width

    def normal(*size: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(size, np.float32) * 0.02 * scale).astype(np.float32)

    residual = (2 * n) ** -0.5
    return {
        'embedding': normal(shape.vocab, d),
        'positions': normal(shape.length, d),
        'attention_norm': np.ones((n, d), np.float32),
        'attention_norm_bias': np.zeros((n, d), np.float32),
        'qkv': normal(n, d, 3 * d),
        'qkv_bias': np.zeros((n, 3 * d), np.float32),
        'out': normal(n, d, d, scale=residual),
        'out_bias': np.zeros((n, d), np.float32),
        'mlp_norm': np.ones((n, d), np.float32),
        'mlp_norm_bias': np.zeros((n, d), np.float32),
        'up': normal(n, d, 4 * d),
        'up_bias': np.zeros((n, 4 * d), np.float32),
        'down': normal(n, 4 * d, d, scale=residual),
        'down_bias': np.zeros((n, d), np.float32),
        'final_norm': np.ones(d, np.float32),
        'final_norm_bias': np.zeros(d, np.float32),
    }


def batch(shape: Shape, rows: int, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs and targets, int32 `[rows, T]`."""
    rng = np.random.default_rng(1)
    size = (rows, (length or shape.length) + 1)
    tokens = rng.integers(4, shape.vocab, size, dtype=np.int32)
    return tokens[:, :-1], tokens[:, 1:]


def racing(
    take: Callable[[], float], tokens: int, steps: int, prepare: Callable[[], object] = lambda: None
) -> tuple[list[float], Callable[[], float]]:
    """Returns the losses of the first steps, and a sample: tokens/s of `steps` steps.

    Args:
        take: takes a step and returns its loss, in nats.
        tokens: of a step.
        steps: in a sample.
        prepare: called once, after the first step.
    """
    losses = [take()]
    prepare()
    losses += [take() for _ in range(1, PROOF_STEPS)]

    def sample() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            take()
        return steps * tokens / (time.perf_counter() - start)

    return losses, sample
