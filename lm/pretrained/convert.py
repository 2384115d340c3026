"""Configs and parameters of a family to ours, and back, by the family's entry."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lm import config as configs
from lm import tree
from lm.config import Config, ModelConfig
from lm.errors import InputError, nearest
from lm.pretrained.family import COMMON, TENSORS, Family, Tensor, resolved
from lm.pretrained.folder import Weights, bar

# What does nothing, whatever it is of.
_OFF = (None, False, 0, '', [], {})
# Keys besides the model's that a family may decide.
_OTHERS = ('data.length', 'data.packing', 'objective.name', 'objective.pairs')


def config_of(family: Family, theirs: Mapping[str, Any], names: frozenset[str]) -> ConfigDict:
    """Returns our config of theirs.

    Args:
        family: theirs.
        theirs: `config.json`.
        names: of the tensors.

    Raises:
        InputError: a key is missing, or asks for what is not supported.
    """
    known = {name for entry in family.config for name in entry.names} | set(COMMON)
    for name, value in theirs.items():
        # One that is off, of a later version, does nothing.
        if name not in known and value not in _OFF and not name.startswith('_'):
            raise InputError(
                f"config.json: '{name}' = {value!r} is not known of the family '{family.name}'."
                f'{_near(name, known)}'
            )
    config = configs.load('base')
    configs.put(config, _read(family, {**theirs, TENSORS: names}))
    return config


def _near(name: str, known: set[str]) -> str:
    near = nearest(name, known)
    return near if near.startswith(' Did') else ''


def _read(family: Family, theirs: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in family.config:
        try:
            found |= entry.read(theirs)
        except InputError:
            raise
        except KeyError as error:
            raise InputError(f'config.json lacks {error}.') from None
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise InputError(
                f'config.json: {", ".join(entry.names)} cannot be read: {error}.'
            ) from None
    return found


def config_for(family: Family, config: Config) -> dict[str, Any]:
    """Returns their config of ours, without what tokenizers decide.

    Raises:
        Unfit: the model is not of this family; says why.
    """
    ours = {f'model.{name}': value for name, value in dataclasses.asdict(config.model).items()}
    found = resolved(config.model)
    ours |= {f'model.{name}': value for name, value in found.items()}
    ours |= {
        key: getattr(getattr(config, section), leaf)
        for key in _OTHERS
        for section, leaf in (key.split('.'),)
    }
    theirs: dict[str, Any] = {}
    names = frozenset(() if config.model.tie_embeddings else ('lm_head.weight',))
    try:
        for entry in family.config:
            theirs |= entry.write(ours)
        back = _parsed_model(family, {**theirs, TENSORS: names})
    except InputError as error:
        raise Unfit(f"the family '{family.name}' has no such model: {error}") from None
    wrong = [
        f'config.model.{name} = {value!r} and not {found[name]!r}'
        for name, value in resolved(back).items()
        if name in found and not _alike(found[name], value)
    ]
    if wrong:
        raise Unfit(f"the family '{family.name}' has {', '.join(wrong)}.", len(wrong))
    return theirs


class Unfit(InputError):
    """A model is not of a family.

    Attributes:
        distance: by how much, in keys of the config.
    """

    def __init__(self, message: str, distance: int = 100) -> None:
        super().__init__(message)
        self.distance = distance


def _alike(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= 1e-12 * max(abs(first), abs(second))
    return first == second


def _parsed_model(family: Family, theirs: Mapping[str, Any]) -> ModelConfig:
    config = configs.load('base')
    configs.put(config, _read(family, theirs))
    return configs.parse(config).model


@dataclasses.dataclass(frozen=True)
class Piece:
    """One of their tensors, and where its parts are.

    Attributes:
        name: theirs.
        axes: of `Tensor`.
        places: a parameter's path, and the layer in it, or None where it has no axis for layers.
        optional: of `Tensor`.
    """

    name: str
    axes: str
    places: tuple[tuple[str, int | None], ...]
    optional: bool = False


def pieces(family: Family, model: ModelConfig, params: Any) -> list[Piece]:
    """Returns all tensors of a model.

    Args:
        family: whose names they have.
        model: ours.
        params: arrays or shapes.

    Raises:
        Unfit: a parameter has no counterpart in the family.
    """
    leaves = tree.by_path(params)
    found = []
    for tensor in family.tensors:
        if tensor.where(model):
            found += _pieces(tensor, model, leaves)
    covered = {path for piece in found for path, _ in piece.places}
    for path in leaves:
        if path not in covered:
            raise Unfit(f"the parameter '{path}' has no counterpart in '{family.name}'.", 1)
    return found


def _pieces(tensor: Tensor, model: ModelConfig, leaves: Mapping[str, Any]) -> Iterator[Piece]:
    if '{n}' not in tensor.theirs:
        if all(path in leaves for path in tensor.paths):
            places = tuple((path, None) for path in tensor.paths)
            yield Piece(tensor.theirs, tensor.axes, places, tensor.optional)
        return
    encodes = tensor.paths[0].startswith('encoder/')
    count = encodes and model.encoder_layers or model.num_layers
    for n in range(count):
        places = tuple(_place(path, n, leaves) for path in tensor.paths)
        if all(path in leaves for path, _ in places):
            yield Piece(tensor.theirs.format(n=n), tensor.axes, places, tensor.optional)


def _place(path: str, n: int, leaves: Mapping[str, Any]) -> tuple[str, int]:
    """Returns in which parameter layer n is, and where: of a pattern, each kind has its own."""
    before, _, after = path.rpartition('layers/')
    blocks = 0
    while f'{before}layers/block_{blocks}/{after}' in leaves:
        blocks += 1
    if blocks < 2:
        return path, n
    return f'{before}layers/block_{n % blocks}/{after}', n // blocks


def load(
    family: Family,
    model: ModelConfig,
    shapes: Any,
    weights: Weights,
    dtype: np.dtype | None,
) -> tuple[Any, list[str]]:
    """Returns parameters, sharded as `shapes` says, and the paths of those that the folder lacks.

    One tensor at a time is read, and turned and laid into its parameter on the devices: no more than that
    is held besides.

    Args:
        family: theirs.
        model: ours.
        shapes: `jax.ShapeDtypeStruct`s with shardings.
        weights: theirs.
        dtype: of the parameters; None keeps those of the files.

    Raises:
        InputError: a tensor is missing, is not known, or has another shape.
    """
    plan = pieces(family, model, shapes)
    leaves = tree.by_path(shapes)
    plan, fresh, zero = _match(family, plan, weights)
    places = {name: place for place, name in enumerate(weights)}
    plan.sort(key=lambda piece: places[piece.name])
    made = {path: _zeros(leaves[path], leaves[path].dtype) for path in zero}
    kinds: dict[str, np.dtype] = {}
    for piece in plan:
        for path, _ in piece.places:  # Of layers of several dtypes, one that holds them all.
            kind = dtype or weights.dtypes[piece.name]
            kinds[path] = jnp.promote_types(kinds.get(path, kind), kind)
    with bar(sum(weights.size(piece.name) for piece in plan), 'read') as shown:
        for piece in plan:
            sizes = _checked(piece, leaves, weights)
            array = weights.read(piece.name)
            _put(made, leaves, piece, sizes, array, kinds)
            shown.update(array.nbytes)
    found = [made.get(path) for path in leaves]
    return jax.tree.unflatten(jax.tree.structure(shapes), found), fresh


def _put(
    made: dict[str, jax.Array],
    leaves: Mapping[str, jax.ShapeDtypeStruct],
    piece: Piece,
    sizes: dict[str, int],
    array: np.ndarray,
    kinds: Mapping[str, np.dtype],
) -> None:
    """Puts what is in an array of theirs into parameters of ours, made or half made."""
    paths, layer = [path for path, _ in piece.places], piece.places[0][1]
    dtype = kinds[paths[0]]
    if array.dtype.itemsize > 4:  # Devices have none such.
        array = array.astype(dtype)
    if layer is None:
        parts = _parts(array, piece.axes, sizes, len(paths))
        for path, part in zip(paths, parts, strict=True):
            made[path] = jax.make_array_from_callback(
                part.shape, leaves[path].sharding, functools.partial(_slice, part, dtype)
            )
        return
    for path in paths:
        if path not in made:
            made[path] = _zeros(leaves[path], kinds[path])
    wholes = [made.pop(path) for path in paths]
    laid = _lay(wholes, array, layer, piece.axes, tuple(sizes.items()))
    made |= zip(paths, jax.block_until_ready(laid), strict=True)


def _slice(array: np.ndarray, dtype: np.dtype, index: Any) -> np.ndarray:
    # A copy: the file may change, or go.
    return array[index].astype(dtype)


def _zeros(like: jax.ShapeDtypeStruct, dtype: np.dtype) -> jax.Array:
    return jnp.zeros(like.shape, dtype, device=like.sharding)


@functools.partial(jax.jit, donate_argnums=0, static_argnames=('axes', 'sizes'))
def _lay(
    wholes: list[jax.Array],
    array: jax.Array,
    index: int,
    axes: str,
    sizes: tuple[tuple[str, int], ...],
) -> list[jax.Array]:
    """Returns parameters of all layers with those of one, which are in an array of theirs."""
    parts = _parts(array, axes, dict(sizes), len(wholes))
    return [
        jax.lax.dynamic_update_index_in_dim(whole, part.astype(whole.dtype), index, 0)
        for whole, part in zip(wholes, parts, strict=True)
    ]


def _match(
    family: Family, plan: list[Piece], weights: Weights
) -> tuple[list[Piece], list[str], list[str]]:
    """Returns what can be read, as it is called, and the paths of what is not there: heads; zeros."""
    bare = family.prefix and not any(name.startswith(family.prefix) for name in weights)

    def named(name: str) -> str:
        return name.removeprefix(family.prefix) if bare else name

    tied = {named(name): named(of) for name, of in family.tied.items()}
    there, fresh, zero = [], [], []
    for piece in plan:
        name = named(piece.name)
        if name in weights:
            there.append(dataclasses.replace(piece, name=name))
        elif all(path.startswith('head_') for path, _ in piece.places):
            fresh += [path for path, _ in piece.places]
        elif same := next((a for a, b in tied.items() if b == name and a in weights), None):
            there.append(dataclasses.replace(piece, name=same))
        elif piece.optional:
            zero += [path for path, _ in piece.places]
        else:
            near = _near(name, set(weights))
            raise InputError(f"the weights lack the tensor '{name}'.{near}")
    used = {piece.name for piece in there}
    for name in weights:
        if name in used or any(re.search(buffer, name) for buffer in family.buffers):
            continue
        if name not in tied:
            raise InputError(
                f"the tensor '{name}' of shape {weights.shapes[name]} has no place in a model of the "
                f"family '{family.name}' with this config.json.{_near(name, used)}"
            )
        if tied[name] in weights and not weights.same(name, tied[name]):
            raise InputError(
                f"the tensor '{name}' differs from '{tied[name]}', which config.json says it is."
            )
    return there, fresh, zero


def _checked(piece: Piece, leaves: Mapping[str, Any], weights: Weights) -> dict[str, int]:
    """Returns the sizes of the axes by name; raises InputError if the tensor has another shape."""
    sizes, theirs = _sizes(piece, leaves)
    if weights.shapes[piece.name] != theirs:
        raise InputError(
            f"the tensor '{piece.name}' has the shape {weights.shapes[piece.name]}; by config.json it is "
            f'{theirs}.'
        )
    return sizes


def _parts(array: Any, axes: str, sizes: dict[str, int], count: int) -> list[Any]:
    """Returns the parameters that are in an array of theirs."""
    found = einops.rearrange(array, axes, **sizes)
    return list(found) if count > 1 else [found]


def _sizes(piece: Piece, leaves: Mapping[str, Any]) -> tuple[dict[str, int], tuple[int, ...]]:
    """Returns the sizes of the axes by name, and the shape there."""
    left, right = piece.axes.split(' -> ')
    path, index = piece.places[0]
    shape = leaves[path].shape[0 if index is None else 1 :]
    if len(piece.places) > 1:
        shape = (len(piece.places), *shape)
    sizes = dict(zip(right.split(), shape, strict=True))
    theirs = []
    for axis in re.findall(r'\([^)]*\)|\S+', left):
        names = axis.strip('()').split()
        theirs.append(int(np.prod([sizes.get(name, 1) for name in names])))
    return sizes, tuple(theirs)


def unload(
    family: Family, model: ModelConfig, params: Any, dtype: np.dtype
) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype]], Iterator[tuple[str, np.ndarray]]]:
    """Returns shape and dtype of each tensor there, and the tensors in the same order, one at a time."""
    plan = pieces(family, model, params)
    leaves = tree.by_path(params)

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for piece in plan:
            left, right = piece.axes.split(' -> ')
            parts = [
                np.asarray(leaves[path] if index is None else leaves[path][index])
                for path, index in piece.places
            ]
            sizes, _ = _sizes(piece, leaves)
            whole = np.stack(parts) if len(parts) > 1 else parts[0]
            found = einops.rearrange(whole, f'{right} -> {left}', **sizes)
            yield piece.name, found.astype(dtype, copy=False)

    return {piece.name: (_sizes(piece, leaves)[1], dtype) for piece in plan}, arrays()
