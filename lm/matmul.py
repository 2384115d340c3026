"""Matrix products with float32 sums, in the form that XLA's CPU backend does fast.

On GPU and TPU these are `jax.lax.dot_general`, and nothing else. What CPU needs was measured
(`experiments/speed/README.md`):

- A product of 16-bit operands is fast, and done at all, only where the contracted axes of the left operand
  come last. So it is transposed before, behind a barrier, or XLA would move the transpose back into the
  product.
- XLA fuses the operations that made an operand into its transpose, and then does them in strides. A
  barrier prevents that too.
- The gradient of a kernel sums over all tokens: the smaller operand is the one to transpose, and in 16 bits
  sums over more than 1,024 rows at a time take twice as long.
- A few vectors times a large table of rows: 1.6 times as fast with the table on the left, behind a
  barrier, or XLA would change the sides again.
"""

import math

import jax
import jax.numpy as jnp

from lm import backend

_ROWS = 1024
_FEW = 16

Axes = tuple[int, ...]


def dot(a: jax.Array, b: jax.Array, axes: tuple[Axes, Axes], batch: int = 0) -> jax.Array:
    """Returns float32 sums of products over axes of `a` and of `b`.

    Args:
        a: float32 or 16 bits.
        b: of the same dtype.
        axes: those of `a`, and in the same order those of `b`, that are summed over.
        batch: so many first axes of both are kept: one product for each of their indices.

    Returns:
        `[*batch, *rest of a, *rest of b]`.
    """
    left, right = axes
    if _on_cpu() and a.dtype != jnp.float32 and left[0] != a.ndim - len(left):
        kept = [axis for axis in range(a.ndim) if axis not in left]
        a = jax.lax.optimization_barrier(jnp.transpose(a, (*kept, *left)))
        left = tuple(range(len(kept), a.ndim))
    first = tuple(range(batch))
    numbers = (left, right), (first, first)
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def few(x: jax.Array) -> bool:
    """Whether `[..., D]` is so few vectors, as when one token is decoded, that `with_rows` is for them."""
    return _one_cpu() and math.prod(x.shape[:-1]) <= _FEW


def with_rows(x: jax.Array, table: jax.Array) -> jax.Array:
    """Returns float32 products of few `[..., D]` with the rows of `[V, D]`: `[..., V]`."""
    products = dot(table, x, ((1,), (x.ndim - 1,)))
    return jnp.moveaxis(jax.lax.optimization_barrier(products), 0, -1)


def outer(a: jax.Array, b: jax.Array, batch: int) -> jax.Array:
    """Returns float32 `[*rest of a, *rest of b]`, summed over the first `batch` axes of both.

    `outer(x [B, T, D], g [B, T, F], 2)` is the gradient `[D, F]` of a kernel.
    """
    summed = tuple(range(batch))
    if not _one_cpu():
        return dot(a, b, (summed, summed))
    shape = a.shape[batch:] + b.shape[batch:]
    a, b = jax.lax.optimization_barrier((_rows(a, batch), _rows(b, batch)))
    if a.size <= b.size:
        return _sum_of_rows(a, b).reshape(shape)
    return jax.lax.optimization_barrier(_sum_of_rows(b, a)).T.reshape(shape)


def total(a: jax.Array, batch: int) -> jax.Array:
    """Returns float32 `[*rest of a]`, summed over the first `batch` axes."""
    if not _one_cpu():
        return jnp.sum(a, axis=tuple(range(batch)), dtype=jnp.float32)
    a, shape = jax.lax.optimization_barrier(_rows(a, batch)), a.shape[batch:]
    return jnp.sum(a, axis=0, dtype=jnp.float32).reshape(shape)


def _rows(a: jax.Array, batch: int) -> jax.Array:
    return a.reshape(math.prod(a.shape[:batch]), -1)


def _sum_of_rows(small: jax.Array, large: jax.Array) -> jax.Array:
    """Returns float32 `[M, N]` of `[rows, M]` and `[rows, N]`."""
    left = jax.lax.optimization_barrier(small.T)
    size = len(large) if large.dtype == jnp.float32 else _ROWS
    return sum(
        dot(left[:, start : start + size], large[start : start + size], ((1,), (0,)))
        for start in range(0, len(large), size)
    )


def _on_cpu() -> bool:
    return backend.platform() == 'cpu'


def _one_cpu() -> bool:
    """Rows that lie on several devices are not laid side by side."""
    mesh = jax.sharding.get_abstract_mesh()
    return _on_cpu() and (mesh.empty or mesh.size == 1)
