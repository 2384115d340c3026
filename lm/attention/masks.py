"""Who may attend to whom, as small frozen descriptions.

A mask is hashable, so it can be a static argument, and becomes an array only where a kernel asks for one.
In a config it is written by name: `parse('causal') == Causal()`.
"""

import dataclasses
from typing import Protocol, TypeVar

import jax
import numpy as np

from lm.errors import lookup

Array = TypeVar('Array', np.ndarray, jax.Array)


class Mask(Protocol):
    """What every mask can answer."""

    def allows(self, q_positions: Array, k_positions: Array) -> Array:
        """Returns bool: may the query at a position see the key at a position?

        Args:
            q_positions: int, places of queries in the row; numpy or jax.
            k_positions: int, places of keys. The two broadcast against each other, so that
                `allows(q[:, None], k[None, :])` is the `[T, S]` mask.
        """


@dataclasses.dataclass(frozen=True)
class Causal:
    """A token sees itself and all before it.

    `Causal().allows(np.arange(3)[:, None], np.arange(3))` is
    `[[1, 0, 0], [1, 1, 0], [1, 1, 1]]`.
    """

    def allows(self, q_positions: Array, k_positions: Array) -> Array:
        return k_positions <= q_positions


@dataclasses.dataclass(frozen=True)
class Full:
    """Every token sees every token."""

    def allows(self, q_positions: Array, k_positions: Array) -> Array:
        # True everywhere, in the shape and library (numpy or jax) of the two together.
        return (q_positions == q_positions) & (k_positions == k_positions)


MASKS = {'causal': Causal(), 'full': Full()}


def parse(expression: str) -> Mask:
    """Returns the mask that an expression of a config describes.

    Raises:
        InputError: a name is not known; the nearest one is named.
    """
    return lookup(MASKS, expression.strip(), 'config.model.attention')
