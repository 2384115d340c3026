"""Trees of arrays, selected by path.

A path joins a leaf's keys with `/`: `layers/attention/query/kernel`. Regular expressions over paths are
the one way to select parameters in this project: for sharding, weight decay and freezing alike.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def path_string(path: Sequence[Any]) -> str:
    """Returns the `/`-joined form of a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def paths(tree: Any) -> list[str]:
    """Returns the path of each leaf, in the order of `jax.tree.leaves`."""
    return [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves by their paths, in the order of `jax.tree.leaves`."""
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Returns the tree of `function(path, leaf, *rest_leaves)`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_string(path), *leaves), tree, *rest
    )


def first_match(rules: Sequence[tuple[str, Any]], path: str) -> Any:
    """Returns the value of the first rule whose expression is found in the path.

    Raises:
        KeyError: no rule covers the path.
    """
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise KeyError(path)


def matches(pattern: str, tree: Any) -> Any:
    """Returns a tree of bools: is the expression found in the leaf's path?"""
    return map_with_path(lambda path, _: re.search(pattern, path) is not None, tree)


def size(tree: Any) -> int:
    """Returns the number of elements of all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def fingerprint(tree: Any) -> jax.Array:
    """Returns a uint32 that changes when a bit of any leaf changes. Traceable.

    The words of each leaf are mixed with their index and summed modulo 2**32. Integer sums do not
    depend on their order, so the result is the same on every mesh. Floats of 16 bits count as the float32
    of the same value, so that what is kept narrow may be read wide.
    """
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        leaf = jnp.asarray(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.dtype.itemsize == 2 and jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = leaf.astype(jnp.float32)
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}.get(leaf.dtype.itemsize, jnp.uint32)
        if leaf.dtype == jnp.bool_:
            words = leaf.astype(jnp.uint32)
        else:
            words = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
        index = jnp.full(words.shape, number + 1, jnp.uint32)
        for axis in range(words.ndim):
            index = index * jnp.uint32(0x9E3779B1) + jax.lax.broadcasted_iota(
                jnp.uint32, words.shape, axis
            )
        mixed = (words ^ index) * jnp.uint32(0x85EBCA6B)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
        total = total + jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
    return total
