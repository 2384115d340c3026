"""Which form of attention runs: one function chooses, `explain` shows why, a config can force another."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm import backend
from lm.attention import blocked, dense, sharded, sparse, splash, table, walk
from lm.attention.block import PLAIN, Extras, Form
from lm.attention.masks import Causal, Full, Heads, Mask
from lm.errors import InputError, lookup

_PLACE = 'config.model.attention_implementation'
# Blocks that are fetched one by one cost more than those that lie where they are needed: below this part
# of the pairs, block-sparse attention wins (`experiments/attention/README.md`).
_WORTH = 0.7
# Shorter rows have too few blocks for any to be left out; of longer ones the logits of a block of queries,
# of which `blocked` has 16 at most, take gigabytes.
_SHORT, _LONG = 512, 8192


@dataclasses.dataclass(frozen=True)
class Case:
    """What attention is asked for, as far as the choice depends on it.

    Attributes:
        mask: who may attend to whom.
        length: T, queries.
        source: S, keys.
        width: K.
        dtype: of queries, keys and values.
        platform: cpu | gpu | tpu.
        whole: places are 0, 1, 2, ... on both sides and there is no bias; else it is a step of decoding.
        segments: rows hold several documents, or prefixes are told.
        extras: of the logits.
        sequence: over how many devices positions are split.
        divided: whether the mesh divides rows, positions and heads evenly.
        capability: of an NVIDIA GPU, such as 9.0; 0 for others.
        devices: of the mesh.
    """

    mask: Mask
    length: int
    source: int
    width: int
    dtype: Any
    platform: str
    whole: bool = True
    segments: bool = False
    extras: Extras = PLAIN
    sequence: int = 1
    divided: bool = True
    capability: float = 0.0
    devices: int = 1


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A form of attention.

    Attributes:
        run: `(query, key, value, mask, *, segments, in_prefix, extras) -> out`.
        obstacle: says why it cannot do a case, and what to do; '' where it can.
        pairs: how many it computes in a case.
        summary: what it is.
        form: how it goes through blocks, where it does: it can then work on a part of the positions.
        checked: on which hardware its numbers were held to those of the plain form, and by what. '' is
            never on the hardware that it is made for: such a one runs only where it is forced.
    """

    run: Callable[..., jax.Array]
    obstacle: Callable[[Case], str]
    pairs: Callable[[Case], int]
    summary: str
    form: Form | None = None
    checked: str = ''


def _all_pairs(case: Case) -> int:
    return case.length * case.source


def _needs_whole_rows(case: Case) -> str:
    if not case.whole:
        return "works on whole rows without a bias, which this is not: use 'auto'."
    return ''


def _cudnn_obstacle(case: Case) -> str:
    if case.extras.softcap is not None:
        return "cannot cap logits: use 'auto', or attention_softcap = 0."
    if case.dtype not in (jnp.float16, jnp.bfloat16):
        return f"needs config.model.dtype = 'bfloat16', not {jnp.dtype(case.dtype)}."
    if case.capability < 8.0:  # cuDNN's flash attention begins with Ampere.
        return "needs an NVIDIA GPU of Ampere or later: use 'auto'."
    if case.width > 128 or case.width % 8 or case.length % 2 or case.source % 2:
        return "needs a head_dim of at most 128, a multiple of 8, and even lengths: use 'auto'."
    return ''


def _hopper() -> Any:
    """The kernel's module. It imports a compiler, which takes a third of a second, so it comes late."""
    from lm.attention import hopper

    return hopper


def _hopper_obstacle(case: Case) -> str:
    if obstacle := _needs_whole_rows(case):
        return obstacle
    if int(case.capability) != 9:  # WGMMA is of this generation alone.
        return "needs an NVIDIA GPU of the Hopper generation: use 'auto'."
    if case.dtype not in (jnp.float16, jnp.bfloat16):
        return f"needs config.model.dtype = 'bfloat16', not {jnp.dtype(case.dtype)}."
    if case.width not in (64, 128):
        return f"needs a head_dim of 64 or 128, not {case.width}: use 'auto'."
    if case.extras.slopes is not None:
        return "has no ALiBi: use 'auto'."
    if case.devices > 1:
        return "runs on one device, and the mesh has several: use 'auto'."
    return ''


def _splash_obstacle(case: Case) -> str:
    return _needs_whole_rows(case) or splash.obstacle(
        case.mask, case.extras, case.dtype, case.platform, case.segments
    )


IMPLEMENTATIONS = {
    'xla': Implementation(
        dense.attend,
        lambda case: '',
        _all_pairs,
        'the plain form: an array of all pairs',
        checked='CPU: tests/attention',
    ),
    'blocked': Implementation(
        blocked.attend,
        _needs_whole_rows,
        lambda case: blocked.pairs(case.mask, case.length, case.source),
        'blocks of queries, each with the keys between the first and the last that it sees',
        blocked.FORM,
        checked='CPU: tests/attention',
    ),
    'sparse': Implementation(
        sparse.attend,
        _needs_whole_rows,
        lambda case: sum(part.pairs for part in table.plan(case.mask, case.length, case.source)),
        'the blocks that hold anything',
        sparse.FORM,
        checked='CPU: tests/attention',
    ),
    'cudnn': Implementation(
        functools.partial(dense.attend, implementation='cudnn'),
        _cudnn_obstacle,
        _all_pairs,
        "NVIDIA's flash attention",
        checked="GPU: JAX's own tests of it; not lm's",
    ),
    'hopper': Implementation(
        lambda *args, **kwargs: _hopper().attend(*args, **kwargs),
        _hopper_obstacle,
        lambda case: walk.pairs(case.mask, case.length, case.source, (128, 128)),
        'the blocks that hold anything, in a kernel for NVIDIA Hopper',
    ),
    'splash': Implementation(
        splash.attend,
        _splash_obstacle,
        lambda case: splash.pairs(case.mask, case.length, case.source),
        "JAX's kernel for TPUs, over the blocks that hold anything",
    ),
}


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *,
    segments: tuple[jax.Array, jax.Array] | None = None,
    in_prefix: jax.Array | None = None,
    positions: tuple[jax.Array, jax.Array] | None = None,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    slopes: tuple[float, ...] | None = None,
    implementation: str = 'auto',
) -> jax.Array:
    """Returns `softmax(query key^T / sqrt(K)) value` over the pairs of a mask, the softmax in float32.

    Args:
        query: `[B, T, H, K]`.
        key: `[B, S, G, K]`. Each of the G heads serves H / G heads of the queries (Ainslie et al.
            2023, https://arxiv.org/abs/2305.13245); G = 1 is multi-query (Shazeer 2019).
        value: `[B, S, G, K]`.
        mask: who may attend to whom, by place in the row.
        segments: int32 `[B, T]` and `[B, S]`; tokens of different segments do not see each other.
        in_prefix: bool `[B, S]`, of keys, for masks with `prefix`.
        positions: int32 `[B or 1, T]` and `[B or 1, S]`, the places that the mask is asked about; a key
            at -1 is not there. None is 0, 1, 2, ... on both sides.
        bias: added to the scaled logits, broadcastable to `[B, H, T, S]`.
        softcap: c > 0 turns logits into `c tanh(logits / c)` before bias and mask (Gemma 2).
        slopes: H numbers, of ALiBi: times the distance, taken from the logits (Press et al. 2021).
        implementation: auto, or one of `IMPLEMENTATIONS`.

    Returns:
        `[B, T, H, K]` in the dtype of the query; zeros where a query may see nothing.

    Raises:
        InputError: the implementation is not known, or cannot do this.
    """
    tokens = {'segments': segments, 'in_prefix': in_prefix}
    if isinstance(mask, Heads):
        options = {
            'positions': positions,
            'softcap': softcap,
            'implementation': implementation,
            **tokens,
        }
        return _each_part_of_heads(query, key, value, mask, bias, slopes, options)
    mesh = jax.sharding.get_abstract_mesh()
    case = Case(
        mask=mask,
        length=query.shape[1],
        source=key.shape[1],
        width=query.shape[-1],
        dtype=query.dtype,
        platform=backend.platform(),
        whole=positions is None and bias is None and query.shape[1] > 1,
        segments=segments is not None or in_prefix is not None,
        extras=Extras(softcap or None, slopes),
        sequence=1 if mesh.empty else mesh.shape.get('sequence', 1),
        divided=sharded.divides(query, key),
        capability=_capability(),
        devices=1 if mesh.empty else mesh.size,
    )
    chosen = IMPLEMENTATIONS[choose(case, implementation)]
    if not case.whole:
        tokens |= {'positions': positions, 'bias': bias}
    elif case.sequence > 1 and case.divided and chosen.form:
        return sharded.attend(chosen.form, query, key, value, mask, extras=case.extras, **tokens)
    return chosen.run(query, key, value, mask, extras=case.extras, **tokens)


def choose(case: Case, implementation: str = 'auto') -> str:
    """Returns the name of the implementation that runs.

    Raises:
        InputError: the one asked for is not known, or cannot do the case.
    """
    if implementation != 'auto':
        chosen = lookup(IMPLEMENTATIONS, implementation, _PLACE)
        # A step of decoding has no use for kernels: what is forced is how rows are trained on.
        if case.whole and (obstacle := chosen.obstacle(case)):
            raise InputError(f"{_PLACE} = '{implementation}' {obstacle}")
        return implementation if case.whole else 'xla'
    if not case.whole:
        return 'xla'
    if case.sequence > 1 and (case.length != case.source or not case.divided):
        return 'xla'
    for kernel in ('splash', 'hopper'):
        if _trusted(kernel, case):
            return kernel
    few = case.length > _SHORT and _share(case) < _WORTH
    whole_rows = case.sequence == 1
    if whole_rows and not few and case.mask in (Causal(), Full()) and _trusted('cudnn', case):
        return 'cudnn'
    return 'sparse' if few or case.length > _LONG else 'blocked'


def _trusted(name: str, case: Case) -> bool:
    """Whether an implementation can do a case, and its numbers were checked on its own hardware."""
    return bool(IMPLEMENTATIONS[name].checked) and not IMPLEMENTATIONS[name].obstacle(case)


def _share(case: Case) -> float:
    """The part of the pairs of dense attention in blocks that block-sparse attention computes."""
    return IMPLEMENTATIONS['sparse'].pairs(case) / max(IMPLEMENTATIONS['blocked'].pairs(case), 1)


def _each_part_of_heads(query, key, value, mask, bias, slopes, options) -> jax.Array:
    """Returns attention with one mask for each of equal parts of the heads."""
    parts, heads, groups = len(mask.masks), query.shape[2], key.shape[2]
    if heads % parts:
        raise InputError(
            f'config.model.attention = {mask} has {parts} masks, which do not divide the {heads} heads.'
        )
    if groups % parts:  # A head of keys serves queries of several masks.
        repeats = heads // groups
        key, value = (jnp.repeat(x, repeats, axis=2) for x in (key, value))
        groups = heads
    outs = []
    for i, part in enumerate(mask.masks):
        q = slice(i * heads // parts, (i + 1) * heads // parts)
        k = slice(i * groups // parts, (i + 1) * groups // parts)
        part_bias = bias if bias is None or bias.shape[1] == 1 else bias[:, q]
        part_slopes = slopes if slopes is None else slopes[q]
        outs.append(
            attend(
                query[:, :, q],
                key[:, :, k],
                value[:, :, k],
                part,
                bias=part_bias,
                slopes=part_slopes,
                **options,
            )
        )
    return jnp.concatenate(outs, axis=2)


def _capability() -> float:
    """The compute capability of an NVIDIA GPU, 0 elsewhere."""
    if not backend.platform() == jax.default_backend() == 'gpu':
        return 0.0
    device = jax.devices()[0]
    # AMD's GPUs are of platform 'gpu' too.
    return (
        float(device.compute_capability)
        if 'cuda' in device.client.platform_version.lower()
        else 0.0
    )


def explain(
    mask: Mask | str | tuple[Mask | str, ...],
    shape: tuple[int, ...],
    platform: str | None = None,
    *,
    dtype: Any = jnp.bfloat16,
    capability: float = 9.0,
) -> str:
    """Returns a text that says which implementation would run, what each would compute, and why.

    Args:
        mask: or several, or their text.
        shape: `[B, T, H, K]` of the queries; keys are as long.
        platform: cpu | gpu | tpu. None is this machine's.
        dtype: of the arrays.
        capability: of the GPU: 8.0 is Ampere, 9.0 Hopper.
    """
    from lm.attention.expression import as_mask

    mask = as_mask(mask)
    if isinstance(mask, tuple | Heads):
        parts = mask.masks if isinstance(mask, Heads) else mask
        options = {'dtype': dtype, 'capability': capability}
        return '\n'.join(explain(part, shape, platform, **options) for part in parts)
    platform = platform or jax.default_backend()
    _, length, _, width = shape
    case = Case(
        mask=mask,
        length=length,
        source=length,
        width=width,
        dtype=jnp.dtype(dtype),
        platform=platform,
        capability=capability if platform == 'gpu' else 0.0,
    )
    chosen = choose(case)
    lines = [f'{mask} over {length:,} tokens on {platform}: {chosen}']
    for name, implementation in IMPLEMENTATIONS.items():
        obstacle = implementation.obstacle(case)
        share = implementation.pairs(case) / length**2
        what = obstacle or f'computes {share:.1%} of the pairs'
        if not obstacle and not implementation.checked:
            what += (
                f'; never run on a {platform.upper()}: not chosen by default; force it with '
                f"{_PLACE} = '{name}'"
            )
        lines.append(
            f'  {"*" if name == chosen else " "} {name:8} {implementation.summary}; {what}'
        )
    return '\n'.join(lines)
