"""A mixture of experts in the place of an MLP: each token goes through some of E of them.

Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; in Transformers GShard (arXiv 2006.16668) and Switch
(arXiv 2101.03961). Tokens come to their experts in one of two ways, with the same result where nothing is
dropped:

- `dropless`: tokens sorted by expert, and products of groups of rows (`lm.grouped`; Gale et al. 2022,
  https://arxiv.org/abs/2211.15841). Over a mesh each device gathers the tokens of those with which it
  shares the experts, computes what its own make of them, and gets back the sum for its own tokens: there
  is no buffer to overflow, and it is the same on every backend.
- `capacity`: each expert takes C tokens of a row, and the others pass by on the residual. In training only:
  what a model predicts should not depend on what other tokens want. Buffers `[E, B, C, D]` go over the mesh
  in an all-to-all.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm import grouped, matmul
from lm.config import ModelConfig
from lm.layers import router as routers
from lm.layers.dense import STDDEV, Dense
from lm.layers.mlp import activate, activation, mlp_dim
from lm.layers.router import Chosen, Slots
from lm.layers.tokens import UNKNOWN, Tokens
from lm.mesh import ROWS, constrain

# Of each of `up`, `down`, and `gate` where there is one, the kernel `[E, D, F]` (`down` `[E, F, D]`), and
# the bias `[E, F]` or None.
Weights = dict[str, tuple[jax.Array, jax.Array | None]]


class Kernels(nn.Module):
    """One matrix for each of E experts, and a bias; float32."""

    experts: int
    inputs: int
    features: int
    bias: bool
    scale: float = 1.0

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        shape, init = (self.inputs, self.features), nn.initializers.normal(STDDEV * self.scale)
        kernel = self.param('kernel', init, (self.experts, *shape))
        zeros = nn.initializers.zeros
        bias = self.param('bias', zeros, (self.experts, self.features)) if self.bias else None
        return kernel, bias


class Experts(nn.Module):
    """The weights of E MLPs, each like `lm.layers.mlp.MLP`."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> Weights:
        c = self.config
        inner = ('up', 'gate') if activation(c).gated else ('up',)
        shape, back = (c.experts, c.embed_dim, mlp_dim(c)), (c.experts, mlp_dim(c), c.embed_dim)
        found = {name: Kernels(*shape, c.bias, name=name)() for name in inner}
        scale = (2 * c.num_layers) ** -0.5
        return found | {'down': Kernels(*back, c.bias, scale, name='down')()}


class MoE(nn.Module):
    """`sum_i weight_i expert_i(x)` over the experts of each token: `[B, T, D] -> [B, T, D]`.

    What `lm.terms` makes a loss and metrics of is sown in the collection `experts`, as sums over tokens:
    see `statistics`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: Tokens = UNKNOWN, deterministic: bool = True
    ) -> jax.Array:
        """Returns `[B, T, D]`; of padding it is 0.

        Args:
            x: `[B, T, D]`.
            tokens: which of these are padding.
            deterministic: not in training: every token goes to all the experts that it chose.
        """
        c, kind = self.config, routers.router(self.config)
        weights = Experts(c, name='experts')()
        logits = Dense((c.experts,), name='router')(x)  # float32 [B, T, E]
        valid = there(tokens, x)
        x = x.astype(c.dtype)
        function = functools.partial(transform, config=c)
        if kind.by_token:
            chosen = kind.choose(logits, c.experts_per_token)
            load = jnp.sum(
                _one_hot(chosen.experts, c.experts) * valid[..., None, None], axis=(1, 2)
            )
            if c.expert_dispatch == 'capacity' and not deterministic:
                slots = routers.slots(chosen, valid, c.experts, capacity(c, x.shape[1]))
                dropped = jnp.sum(load) - jnp.sum(slots.places < x.shape[1])
                out = bounded(x, slots, weights, function)
            else:
                dropped, out = 0.0, dropless(x, chosen, valid, weights, function)
        else:
            slots = kind.choose(logits, valid, c.experts_per_token)
            taken = slots.places < x.shape[1]
            load = jnp.sum(taken, axis=2).astype(jnp.float32)
            dropped = c.experts_per_token * jnp.sum(~taken_by_any(slots, valid) & valid)
            out = bounded(x, slots, weights, function)
        if not self.is_initializing():
            for name, value in statistics(c, logits, load, valid, dropped).items():
                self.sow('experts', name, value, init_fn=lambda: 0.0, reduce_fn=jnp.add)
        return out


def statistics(
    config: ModelConfig, logits: jax.Array, load: jax.Array, valid: jax.Array, dropped: jax.Array
) -> dict[str, jax.Array]:
    """Returns sums over the tokens of a layer, float32 scalars. Divided by the number of tokens they are

    - `loss`: what is minimised, `balance_loss` times the next and `router_z_loss` times the one after;
    - `balance`, 1 if loads are even in each row, and `z`;
    - `load`: the busiest expert's divided by the mean, in this batch (with accumulation or a pipeline,
      in its part);
    - `dropped`: the part of choices that found no room; of expert choice that of tokens which none took;
    - `tokens`: 1.
    """
    tokens = jnp.sum(valid).astype(jnp.float32)
    each = jax.lax.stop_gradient(jnp.sum(load, axis=0))  # [E]
    by_token = routers.router(config).by_token
    found = {
        'tokens': tokens,
        'balance': routers.balance(logits, load, valid) if by_token else tokens,
        'z': routers.z(logits, valid),
        'load': tokens * jnp.max(each) / jnp.maximum(jnp.mean(each), 1e-6),
        'dropped': jnp.asarray(dropped, jnp.float32) / config.experts_per_token,
    }
    loss = config.balance_loss * found['balance'] + config.router_z_loss * found['z']
    return {'loss': loss} | jax.lax.stop_gradient(found)


def there(tokens: Tokens, x: jax.Array) -> jax.Array:
    """Returns which of `[B, T, D]` are tokens, bool `[B, T]`; padding is none."""
    if tokens.places is not None:
        return tokens.places >= 0
    if tokens.segments is None:
        return jnp.ones(x.shape[:2], bool)
    return jnp.tile(tokens.segments > 0, (1, x.shape[1] // tokens.segments.shape[1]))


def capacity(config: ModelConfig, length: int) -> int:
    """Returns C, how many tokens of a row of T an expert takes."""
    even = config.experts_per_token * length / config.experts
    return min(length, max(1, math.ceil(config.capacity_factor * even)))


def taken_by_any(slots: Slots, valid: jax.Array) -> jax.Array:
    """Returns which tokens an expert took, bool `[B, T]`."""

    def row(places: jax.Array, valid: jax.Array) -> jax.Array:
        return jnp.zeros_like(valid).at[places.reshape(-1)].set(True, mode='drop')

    return jax.vmap(row)(slots.places, valid)


def transform(product: Callable[[str, jax.Array], jax.Array], x: jax.Array, config: ModelConfig):
    """Returns an MLP's output; `product('up', x)` multiplies with the matrix of that name."""
    kind = activation(config)
    h = product('up', x)
    if kind.gated:
        h *= activate(kind.function, product('gate', x))
    else:
        h = activate(kind.function, h)
    return product('down', h)


def _one_hot(x: jax.Array, size: int) -> jax.Array:
    return jax.nn.one_hot(x, size, dtype=jnp.float32)


# --- dropless -------------------------------------------------------------------------------------


class Order(NamedTuple):
    """How `[n k]` choices are sorted by expert.

    Attributes:
        choices: int32 `[R]`, which choice is at each place.
        places: int32 `[n, k]`, the place of each choice; R or more is none.
    """

    choices: jax.Array
    places: jax.Array


def dropless(
    x: jax.Array, chosen: Chosen, valid: jax.Array, weights: Weights, function: Callable
) -> jax.Array:
    """Returns `[B, T, D]`: every token goes to all the experts that it chose."""
    nobody = weights['up'][0].shape[0]
    experts = jnp.where(valid[..., None], chosen.experts, nobody)
    local = functools.partial(_dropless, function=function)
    mesh = jax.sharding.get_abstract_mesh()
    shape = (math.prod(mesh.shape.get(axis, 1) for axis in ROWS), mesh.shape.get('sequence', 1))
    if mesh.empty or mesh.size == 1 or any(n % s for n, s in zip(x.shape, shape, strict=False)):
        return local(x, experts, chosen.weights, weights, {})
    rows = P(ROWS, 'sequence', None)
    inner = P('expert', None, 'tensor'), P('expert', 'tensor')
    specs = {
        name: (P('expert', 'tensor', None), P('expert', None)) if name == 'down' else inner
        for name in weights
    }
    specs = {
        name: (spec[0], None if weights[name][1] is None else spec[1])
        for name, spec in specs.items()
    }
    return jax.shard_map(
        functools.partial(local, mesh=dict(mesh.shape)),
        in_specs=(rows, rows, rows, specs),
        out_specs=rows,
        check_vma=False,
    )(x, experts, chosen.weights, weights)


def _dropless(x, experts, scales, weights, mesh, function) -> jax.Array:
    """As `dropless` on one device, of the sizes `mesh` that it is one of; experts of padding are E."""
    shape, count = x.shape, experts.shape[-1]
    x, experts, scales = (a.reshape(-1, a.shape[-1]) for a in (x, experts, scales))
    own = len(weights['up'][0])
    if mesh.get('expert', 1) > 1:
        gather = functools.partial(jax.lax.all_gather, axis_name='expert', tiled=True)
        x, experts, scales = map(gather, (x, experts, scales))
        experts -= own * jax.lax.axis_index('expert')
        experts = jnp.where((experts < 0) | (experts > own), own, experts)
    if mesh.get('tensor', 1) > 1 and weights['down'][1] is not None:  # Added once.
        kernel, bias = weights['down']
        first = jax.lax.axis_index('tensor') == 0
        weights = weights | {'down': (kernel, jnp.where(first, bias, 0.0))}
    out = _through(x, experts, scales, weights, min(count, own) * len(x), function)
    if mesh.get('tensor', 1) > 1:
        out = jax.lax.psum(out, 'tensor')
    if mesh.get('expert', 1) > 1:
        out = jax.lax.psum_scatter(out, 'expert', tiled=True)
    return out.astype(x.dtype).reshape(shape)


def _through(x, experts, scales, weights, most, function) -> jax.Array:
    """Returns float32 `[n, D]` of `x [n, D]`, experts and scales `[n, k]`.

    At most `most` of the choices are of experts that are here.
    """
    own, flat = len(weights['up'][0]), experts.reshape(-1)
    choices = jnp.argsort(flat, stable=True)
    places = jnp.zeros_like(choices).at[choices].set(jnp.arange(len(flat)))
    order = Order(choices[:most], places.reshape(experts.shape))
    sizes = jnp.bincount(flat, length=own + 1)[:own].astype(jnp.int32)
    group = jnp.minimum(flat[order.choices], own - 1)

    def product(name: str, x: jax.Array) -> jax.Array:
        kernel, bias = weights[name]
        y = grouped.dot(x, kernel, sizes)
        return y if bias is None else y + bias[group].astype(y.dtype)

    y = _collected(function(product, _sorted(x, order)), order)  # [n, k, D]
    scales = jnp.where(experts < own, scales, 0.0)
    return jnp.einsum('nk,nkd->nd', scales, y.astype(jnp.float32))


@jax.custom_vjp
def _sorted(x: jax.Array, order: Order) -> jax.Array:
    """Returns `[R, D]` of `[n, D]`: a token for each choice. Its gradient is gathered, not scattered."""
    return x[order.choices // order.places.shape[1]]


def _sorted_forward(x, order):
    return _sorted(x, order), order


def _sorted_backward(order, gradient):
    each = _collected(gradient, order).astype(jnp.float32)
    return jnp.sum(each, axis=1).astype(gradient.dtype), None


_sorted.defvjp(_sorted_forward, _sorted_backward)


@jax.custom_vjp
def _collected(y: jax.Array, order: Order) -> jax.Array:
    """Returns `[n, k, D]` of `[R, D]`: what each choice came to; 0 for those that are at no place."""
    return jnp.take(y, order.places, axis=0, mode='fill', fill_value=0)


def _collected_forward(y, order):
    return _collected(y, order), order


def _collected_backward(order, gradient):
    return gradient.reshape(-1, gradient.shape[-1])[order.choices], None


_collected.defvjp(_collected_forward, _collected_backward)


# --- with a capacity ------------------------------------------------------------------------------


def bounded(x: jax.Array, slots: Slots, weights: Weights, function: Callable) -> jax.Array:
    """Returns `[B, T, D]`: a token goes to the experts that took it."""
    rows = ROWS, None, None, None
    there = 'expert', tuple(axis for axis in ROWS if axis != 'expert'), None, None
    take = functools.partial(jnp.take, axis=0, mode='fill', fill_value=0)
    own = constrain(jax.vmap(take)(x, slots.places), rows)  # [B, E, C, D]
    buffers = constrain(jnp.swapaxes(own, 0, 1), there)

    def product(name: str, x: jax.Array) -> jax.Array:
        kernel, bias = weights[name]
        y = matmul.dot(x, kernel.astype(x.dtype), ((3,), (1,)), batch=1)  # [E, B, C, F]
        return (y if bias is None else y + bias[:, None, None]).astype(x.dtype)

    y = constrain(function(product, buffers), there)
    y = constrain(jnp.swapaxes(y, 0, 1), rows).astype(jnp.float32) * slots.weights[..., None]

    def back(y: jax.Array, places: jax.Array) -> jax.Array:
        empty = jnp.zeros((x.shape[1], y.shape[-1]), y.dtype)
        return empty.at[places.reshape(-1)].add(y.reshape(-1, y.shape[-1]), mode='drop')

    return jax.vmap(back)(y, slots.places).astype(x.dtype)
