"""Products of rows with the matrix of the group that each is of: the experts' part of a mixture.

On GPU and TPU this is `jax.lax.ragged_dot`. On CPU that multiplies every row with every group's matrix:
its time grows with the groups (`experiments/moe/README.md`). So there the rows of a group go through its
matrix a block at a time, in a loop that ends with the last row of any group: the time follows the rows.
"""

import jax
import jax.numpy as jnp

from lm import backend, matmul

_ROWS = 128  # Of a block. Each block reads a whole matrix, and half of a group's last one is empty.


@jax.custom_vjp
def dot(x: jax.Array, kernel: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns `[R, F]`: row r of `x` times the matrix of its group, summed in float32.

    Args:
        x: `[R, D]`, float32 or bfloat16, those of a group next to each other: first all of group 0.
        kernel: `[E, D, F]`, float32; used in the dtype of `x`.
        sizes: int32 `[E]`, the rows of each group. Rows after the last group's become 0.
    """
    return _forward(x, kernel, sizes)[0]


def _forward(x, kernel, sizes):
    return _products(x, kernel.astype(x.dtype), sizes), (x, kernel, sizes)


def _backward(residuals, gradient):
    x, kernel, sizes = residuals
    gradient = gradient.astype(x.dtype)
    d_x = _products(gradient, jnp.swapaxes(kernel, 1, 2).astype(x.dtype), sizes)
    return d_x, _outer(x, gradient, sizes).astype(kernel.dtype), None


dot.defvjp(_forward, _backward)


def _products(x: jax.Array, kernel: jax.Array, sizes: jax.Array) -> jax.Array:
    form = products_in_blocks if backend.platform() == 'cpu' else products_ragged
    return form(x, kernel, sizes).astype(x.dtype)


def _outer(a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns float32 `[E, D, F]`, of each group the sum of its rows' outer products."""
    form = outer_in_blocks if backend.platform() == 'cpu' else outer_ragged
    return form(a, b, sizes)


# --- as the library has it ------------------------------------------------------------------------


def products_ragged(x: jax.Array, kernel: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns float32 `[R, F]`."""
    y = jax.lax.ragged_dot(x, kernel, sizes, preferred_element_type=jnp.float32)
    # What a TPU's kernel leaves in the rows after the last group's is whatever was there.
    return jnp.where((jnp.arange(len(x)) < jnp.sum(sizes))[:, None], y, 0)


def outer_ragged(a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns float32 `[E, D, F]` of `[R, D]` and `[R, F]`."""
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    return jax.lax.ragged_dot_general(a, b, sizes, numbers, preferred_element_type=jnp.float32)


# --- a block of rows at a time --------------------------------------------------------------------


def products_in_blocks(x: jax.Array, kernel: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns float32 `[R, F]`.

    A group's last block reaches into the rows of the next, and writes zeros there before that group does.
    """
    rows = min(_ROWS, len(x))
    padded = jnp.pad(x, ((0, rows), (0, 0)))
    count, block = _blocks(sizes, rows)

    def body(number: jax.Array, out: jax.Array) -> jax.Array:
        group, start, there = block(number)
        part = jax.lax.dynamic_slice_in_dim(padded, start, rows)
        y = matmul.dot(part, jax.lax.dynamic_index_in_dim(kernel, group, 0, False), ((1,), (0,)))
        return jax.lax.dynamic_update_slice_in_dim(out, jnp.where(there, y, 0), start, 0)

    empty = jnp.zeros((len(padded), kernel.shape[2]), jnp.float32)
    return jax.lax.fori_loop(0, count, body, empty)[: len(x)]


def outer_in_blocks(a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns float32 `[E, D, F]` of `[R, D]` and `[R, F]`."""
    rows = min(_ROWS, len(a))
    a, b = (jnp.pad(x, ((0, rows), (0, 0))) for x in (a, b))
    count, block = _blocks(sizes, rows)

    def body(number: jax.Array, out: jax.Array) -> jax.Array:
        group, start, there = block(number)
        left, right = (jax.lax.dynamic_slice_in_dim(x, start, rows) for x in (a, b))
        y = matmul.dot(left, jnp.where(there, right, 0), ((0,), (0,)))
        total = jax.lax.dynamic_index_in_dim(out, group, 0, False) + y
        return jax.lax.dynamic_update_index_in_dim(out, total, group, 0)

    return jax.lax.fori_loop(
        0, count, body, jnp.zeros((len(sizes), a.shape[1], b.shape[1]), jnp.float32)
    )


def _blocks(sizes: jax.Array, rows: int):
    """Returns how many blocks there are, and what tells of each its group, its first row and which of its
    rows are the group's, bool `[rows, 1]`.
    """
    ends = jnp.cumsum(sizes)
    counts = -(-sizes // rows)
    last = jnp.cumsum(counts)

    def block(number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        group = jnp.searchsorted(last, number, side='right')
        start = ends[group] - sizes[group] + (number - last[group] + counts[group]) * rows
        return group, start, (start + jnp.arange(rows) < ends[group])[:, None]

    return last[-1], block
