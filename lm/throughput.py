"""How fast a run is: tokens a second, and the share of the chip's peak that it reaches (MFU).

There are two conventions for MFU, and figures of one are not to be held against figures of the other:
`mfu` counts attention's full square of T^2 pairs, as PaLM does; `mfu_causal` counts half of it.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lm import chips, tree
from lm.config import ModelConfig


def peak_flops(device: Any) -> float | None:
    """Returns a device's peak rate for dense bf16 products, or None where it is not known (CPU)."""
    chip = chips.of(device)
    return chip.flops if chip else None


def active(params: Any, model: ModelConfig) -> int:
    """Returns how many of some parameters (arrays or shapes) a token goes through: of E experts k."""
    if not model.experts:
        return tree.size(params)
    leaves = tree.by_path(params).items()
    of_experts = tree.size([leaf for path, leaf in leaves if 'mlp/experts/' in path])
    used = of_experts * model.experts_per_token // model.experts
    return tree.size(params) - of_experts + used


def flops_per_token(
    parameters: int, model: ModelConfig, length: int, vocab_size: int, causal: bool = False
) -> float:
    """Returns the FLOPs of one token's training step, as PaLM counts (arXiv 2204.02311, appendix B).

    6 for each parameter in a matrix product (`parameters`: those that a token goes through), and 12 N D T
    for attention, counting the full square even where it is causal; half of that with `causal`. What is
    computed again in the backward pass does not count. An embedding that is only looked up does no
    product: it counts if it is tied.
    """
    narrow = model.embedding_dim or model.embed_dim
    looked_up = 0 if model.tie_embeddings else vocab_size * narrow
    if model.position == 'learned':
        looked_up += length * model.embed_dim
    width = model.num_heads * model.head_dim or model.embed_dim
    attention = 12 * model.num_layers * width * length
    return 6 * (parameters - looked_up) + (attention / 2 if causal else attention)


def encoder_flops_per_token(
    parts: Sequence[tuple[int, float]], model: ModelConfig, length: int
) -> float:
    """Returns the FLOPs of one token's training step in an encoder, counted as those of a decoder.

    A parameter in a matrix product takes 2 forward, and 4 backward: 2 for the gradient of each factor.
    Layers have all tokens, heads only those that are asked about. In attention each of N layers compares
    a token with T others, and adds up as many values: two products of 2 H K T, and three times that with
    the backward pass, 12 N H K T. It is the whole square, as an encoder sees both sides.

    Args:
        parts: parameters that are in products, and which part of the tokens goes through them.
        model: the encoder's.
        length: T.
    """
    width = model.num_heads * model.head_dim or model.embed_dim
    products = sum(parameters * share for parameters, share in parts)
    return 6 * products + 12 * model.num_layers * width * length


class Meter:
    """Tokens a second between readings, leaving out pauses (evaluation, checkpoints, compilation)."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self._paused = 0.0
        self._tokens = 0.0
        self._steps = 0
        self.rates: list[float] = []
        self.step_seconds: list[float] = []

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out the time spent inside."""
        start = self._clock()
        yield
        self._paused += self._clock() - start

    def restart(self) -> None:
        """Begins to count anew, as after the first step, whose time is compilation."""
        self._start, self._paused, self._tokens, self._steps = self._clock(), 0.0, 0.0, 0

    def add(self, tokens: float) -> None:
        """Counts a step of so many target tokens."""
        self._tokens += tokens
        self._steps += 1

    def read(self) -> float | None:
        """Returns tokens a second since the last reading, or None if no step was counted."""
        seconds = self._clock() - self._start - self._paused
        if not self._steps or seconds <= 0:
            return None
        self.rates.append(self._tokens / seconds)
        self.step_seconds.append(seconds / self._steps)
        self.restart()
        return self.rates[-1]

    def summary(
        self, flops: Mapping[str, float | None], devices: list[Any]
    ) -> dict[str, float | None]:
        """Returns medians over the readings: `tokens_per_second`, `step_seconds_median`, and shares.

        Args:
            flops: a token's, by the name of the share: `{'mfu': ..., 'mfu_causal': ...}`.
                None is not known.
            devices: that it ran on. If their peak is not known, the shares are None.
        """
        if not self.rates:
            return dict.fromkeys(('tokens_per_second', 'step_seconds_median', *flops))
        rate, peak = statistics.median(self.rates), peak_flops(devices[0])
        shares = {
            name: rate * count / (peak * len(devices)) if peak and count else None
            for name, count in flops.items()
        }
        return {
            'tokens_per_second': rate,
            'step_seconds_median': statistics.median(self.step_seconds),
            **shares,
        }
