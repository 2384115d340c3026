"""A model as StableHLO: a program that runs from Python and C++ without this project.

    f = jax.export.deserialize(open('model.jax_export', 'rb').read())
    logits = f.call(safetensors.numpy.load_file('model.safetensors'), tokens)

`jax.export` guarantees that such a file is read for six months by later releases of JAX, and `.mlirbc`
(portable StableHLO) for five years (https://docs.jax.dev/en/latest/export/export.html).
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from lm import attention, tree
from lm.attention.masks import Mask
from lm.errors import InputError
from lm.inference import LanguageModel
from lm.models import Decoder, Encoder, EncoderDecoder
from lm.pretrained.folder import SINGLE, Writer
from lm.writer import atomic_write

PYTHON, PORTABLE, SIGNATURE = 'model.jax_export', 'model.mlirbc', 'signature.json'
# All that JAX has; nothing in the program is of one of them.
_PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
WEIGHTS = ('outside', 'inside')
_MOST_INSIDE = (1 << 31) - (1 << 26)


class Input(NamedTuple):
    """What a program reads besides weights, int32 `[b, t]`, or `[b, s]` of sources."""

    name: str
    what: str
    source: bool = False


_TOKENS = Input('tokens', 'token ids')
_THERE = Input('segment_ids', '1 where there is a token, 0 where the row is filled up')
_TYPES = Input('token_types', '0 in a first text, 1 in a second')
_SOURCES = (
    Input('encoder_inputs', 'token ids of the source', source=True),
    Input('encoder_segment_ids', '1 where the source has a token', source=True),
)


def _decoder(model: Decoder, params: Any, tokens: jax.Array) -> Any:
    return {'logits': model.apply({'params': params}, tokens)}


def _encoder(model: Encoder, params: Any, tokens: jax.Array, there: jax.Array, *types: Any) -> Any:
    more = {'token_types': types[0]} if types else {}
    made = model.apply({'params': params}, tokens, segment_ids=there, **more)
    return made if isinstance(made, dict) else {'vectors': made}


def _encoder_decoder(
    model: EncoderDecoder, params: Any, sources: jax.Array, there: jax.Array, tokens: jax.Array
) -> Any:
    logits = model.apply(
        {'params': params}, tokens, encoder_inputs=sources, encoder_segment_ids=there
    )
    return {'logits': logits}


# Kind of model -> the program, and its inputs in order.
_PROGRAMS: dict[type, tuple[Callable[..., Any], tuple[Input, ...]]] = {
    Decoder: (_decoder, (_TOKENS,)),
    Encoder: (_encoder, (_TOKENS, _THERE)),
    EncoderDecoder: (_encoder_decoder, (*_SOURCES, _TOKENS)),
}


def write(
    model: LanguageModel,
    folder: Path,
    dtype: np.dtype,
    name: str,
    weights: str,
    shape: Sequence[int],
) -> None:
    """Writes the programs, their weights and what they read and return.

    `model.jax_export` is for Python, with any batch, and any length where attention is by masks;
    `model.mlirbc` for compilers such as IREE's, with one shape. (Open ones are not what they take.)

    Args:
        model: a decoder, an encoder or an encoder-decoder.
        folder: which exists.
        dtype: of the weights.
        name: of the model, for people.
        weights: `outside`, in `model.safetensors`, and the program's first arguments; or `inside`, its
            constants.
        shape: B and T, and S of sources (else T), of `model.mlirbc`; () is one row as long as can be.

    Raises:
        InputError: the model is of another kind, or the shape is none or longer than the model can.
    """
    own = model.run.steps.model
    if type(own) not in _PROGRAMS:
        raise InputError(f'a model such as {type(own).__name__} has no program here.')
    program, inputs = _PROGRAMS[type(own)]
    if isinstance(own, Encoder) and own.config.token_types:
        inputs = (*inputs, _TYPES)
    sizes = _sizes(own, shape)
    # The plain form of attention is the one that no length is wrong for.
    config = dataclasses.replace(own.config, attention_implementation='xla', remat='none')
    own = own.clone(config=config)
    flat = tree.by_path(model.params)
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, dtype) for path, leaf in flat.items()}
    whole = jax.tree.structure(model.params)
    paths = tree.paths(model.params)

    def call(given: dict[str, jax.Array], *arguments: jax.Array) -> Any:
        params = jax.tree.unflatten(whole, [given[path] for path in paths])
        return program(own, params, *arguments)

    size = sum(math.prod(leaf.shape) for leaf in flat.values()) * dtype.itemsize
    if weights == 'inside' and size >= _MOST_INSIDE:
        raise InputError(
            f'--weights=inside: {size / 1e9:.1f} GB are more than the 2 GB that a program may have.'
        )
    if weights == 'inside':
        constants = {path: jnp.asarray(jax.device_get(leaf), dtype) for path, leaf in flat.items()}
        function, first = jax.jit(lambda *arguments: call(constants, *arguments)), ()
    else:
        function, first = jax.jit(call), (shapes,)

    def exported(dims: Sequence[Any], platforms: Sequence[str]) -> export.Exported:
        b, t, s = dims
        rows = [jax.ShapeDtypeStruct((b, s if i.source else t), jnp.int32) for i in inputs]
        return export.export(function, platforms=platforms)(*first, *rows)

    # With a length of 1 a row may be taken for a step of decoding.
    most = dict(zip('bts', _most(own), strict=True))
    # Kinds that work in pieces of the row, or choose some, are compiled for its length.
    free = all(isinstance(kind, Mask) for kind in attention.parse_pattern(config.attention))
    dims = ('bts' if any(i.source for i in inputs) else 'bt') if free else 'b'
    bounds = [bound for d in dims[1:] for bound in (f'{d} >= 2', f'{d} <= {most[d]}')]
    opened = export.symbolic_shape(','.join(dims), constraints=bounds)
    found = exported((*opened, *sizes[len(dims) :]), _PLATFORMS)
    (folder / PYTHON).write_bytes(found.serialize())
    fixed = exported(sizes, ('cpu',))
    (folder / PORTABLE).write_bytes(fixed.mlir_module_serialized)
    if weights == 'outside':
        specs = {path: (flat[path].shape, dtype) for path in sorted(flat)}
        Writer(folder, specs, limit=1 << 62).write(  # One file, as the recipe has it.
            (path, jax.device_get(flat[path]).astype(dtype)) for path in specs
        )
    signature = _signature(found, shapes if weights == 'outside' else {}, inputs, sizes)
    atomic_write(folder / SIGNATURE, json.dumps(signature, indent=2) + '\n')
    atomic_write(folder / 'README.md', _card(model, name, inputs, weights, sizes, free))


def _most(model: Any) -> tuple[int, int, int]:
    """Returns 1, and the most T and S."""
    return 1, model.max_length, getattr(model, 'max_source', model.max_length)


def _sizes(model: Any, shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns B, T and S."""
    _, *most = _most(model)
    if not shape:
        return _most(model)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise InputError(f'--shape = {",".join(map(str, shape))} is no B,T or B,T,S.')
    sizes = (*shape, min(shape[1], most[1]))[:3]
    for size, limit, what in zip(sizes[1:], most, ('tokens', 'tokens of a source'), strict=True):
        if size > limit:
            raise InputError(
                f"--shape = {','.join(map(str, shape))} is longer than the model's {limit} {what}."
            )
    return sizes


def _signature(
    found: export.Exported,
    weights: dict[str, Any],
    inputs: Sequence[Input],
    sizes: tuple[int, int, int],
) -> dict[str, Any]:
    """Returns the arguments and results in the order of the program, weights by their sorted names."""
    names = [*sorted(weights), *(i.name for i in inputs)]
    # What nothing is computed from is no argument of the StableHLO.
    kept = [
        _described(names[place], aval)
        for place, aval in enumerate(found.in_avals)
        if place in found.module_kept_var_idx
    ]
    results = jax.tree.unflatten(found.out_tree, found.out_avals)
    return {
        'arguments': kept,
        'results': [_described(name, aval) for name, aval in sorted(results.items())],
        PORTABLE: dict(zip('bts' if any(i.source for i in inputs) else 'bt', sizes, strict=False)),
    }


def _described(name: str, aval: Any) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return {'name': name, 'shape': shape, 'dtype': str(aval.dtype)}


_CARD = """# {name} as StableHLO

- `{python}` runs from Python with JAX alone, for any batch b and {lengths}.
- `{portable}` is portable StableHLO of b = {b}, t = {t}{source}, for compilers such as IREE's.
- `{signature}` lists arguments and results in order, of arguments those that anything is computed from:
  `{portable}` takes these alone.
- `tokenizer.json` is read by Hugging Face's `tokenizers`.

Arguments besides weights, int32:

{inputs}

From Python (`pip install jax flatbuffers{packages}`):

```python
import jax
{imports}
f = jax.export.deserialize(open('{python}', 'rb').read())
results = f.call({call})  # {{name: array}}
```

From C++, by IREE (`pip install iree-base-compiler iree-base-runtime`; what `iree-run-module` does is in
its C and C++ libraries):

```sh
iree-compile {portable} --iree-input-type=stablehlo --iree-hal-target-device=local \\
  --iree-hal-local-target-device-backends=llvm-cpu --iree-llvmcpu-target-cpu=host -o model.vmfb
iree-run-module --module=model.vmfb --device=local-task {arguments}
```
"""


def _card(
    model: LanguageModel,
    name: str,
    inputs: Sequence[Input],
    weights: str,
    sizes: tuple[int, int, int],
    free: bool,
) -> str:
    outside = weights == 'outside'
    names = ', '.join(i.name for i in inputs)
    most = model.run.steps.model.max_length
    has_source = any(i.source for i in inputs)
    return _CARD.format(
        name=name,
        python=PYTHON,
        portable=PORTABLE,
        signature=SIGNATURE,
        lengths=f'length t from 2 to {most}' if free else f't = {sizes[1]}',
        b=sizes[0],
        t=sizes[1],
        source=f', s = {sizes[2]}' if has_source else '',
        inputs='\n'.join(f'- `{i.name}` [b, {"s" if i.source else "t"}]: {i.what}' for i in inputs),
        imports=f"from safetensors.numpy import load_file\n\nweights = load_file('{SINGLE}')"
        if outside
        else '',
        packages=' safetensors' if outside else '',
        call=f'weights, {names}' if outside else names,
        arguments=' '.join(f'--input=@{i.name}.npy' for i in inputs)
        + (' # after an --input for each weight' if outside else ''),
    )
