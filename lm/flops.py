"""FLOPs of a traced function: 2 for each product of two numbers in its matrix products, loops and all.

It is what the program asks for, over all devices and before any compiler: what is computed again in the
backward pass counts, and what is not a matrix product does not.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core


def count(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> float:
    """Returns the FLOPs of a jaxpr, such as `jax.jit(f).trace(x).jaxpr`.

    The branch of a condition that has most counts, the body of a loop as often as it runs, and of a loop
    that may end at any time once. A Pallas kernel counts as its cost estimate says, or as if each of its
    programs did all that is in it.
    """
    inner = getattr(jaxpr, 'jaxpr', jaxpr)
    return sum(_of(equation) for equation in inner.eqns)


def _of(equation: Any) -> float:
    name, given = equation.primitive.name, equation.params
    if name == 'dot_general':
        (summed, _), _ = given['dimension_numbers']
        left = equation.invars[0].aval
        return (
            2.0
            * math.prod(equation.outvars[0].aval.shape)
            * math.prod(left.shape[i] for i in summed)
        )
    if name == 'ragged_dot_general':
        return _of_groups(equation)
    if name == 'conv_general_dilated':
        kernel, axes = equation.invars[1].aval.shape, given['dimension_numbers'].rhs_spec
        each = math.prod(kernel) // kernel[axes[0]]  # All but the features that come out.
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * each
    if name == 'cond':
        return max(map(count, given['branches']))
    if name == 'pallas_call':
        if given.get('cost_estimate'):
            return float(given['cost_estimate'].flops)
        return math.prod(n for n in given['grid_mapping'].grid if isinstance(n, int)) * count(
            given['jaxpr']
        )
    times = 1
    if name == 'scan':
        times = given['length']
    elif name == 'shard_map':
        times = given['mesh'].size  # What is inside is of one device.
    return times * sum(count(part) for part in _parts(given))


def _of_groups(equation: Any) -> float:
    """Each row goes through the matrix of its group alone, and is once in a sum over a group's rows."""
    left, right = (each.aval.shape for each in equation.invars[:2])
    numbers = equation.params['ragged_dot_dimension_numbers']
    (summed, _), _ = numbers.dot_dimension_numbers
    if set(numbers.lhs_ragged_dimensions) <= set(summed):  # [R, D] and [R, F] -> [E, D, F]
        return 2.0 * math.prod(left) * math.prod(right) / math.prod(left[i] for i in summed)
    # [R, D] and [E, D, F] -> [R, F]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in summed)


def _parts(given: dict[str, Any]) -> Iterator[Any]:
    """Yields the functions among the parameters of an equation."""
    for key, value in given.items():
        if key in ('cond_jaxpr', 'fwd_jaxpr_thunk', 'bwd', 'jvp_jaxpr_fun'):
            continue
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.Jaxpr | core.ClosedJaxpr):
                yield part


def of(function: Any, *args: Any) -> float:
    """Returns the FLOPs of a function of arrays, or of their shapes."""
    return count(jax.make_jaxpr(function)(*args))
