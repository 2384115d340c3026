"""Which experts each token goes to, and what keeps their loads even."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.errors import InputError, lookup


class Chosen(NamedTuple):
    """Experts of tokens.

    Attributes:
        experts: int32 `[B, T, k]`, the best first.
        weights: float32 `[B, T, k]`, what each one's output is multiplied by.
    """

    experts: jax.Array
    weights: jax.Array


class Slots(NamedTuple):
    """Tokens of experts, C in each row. A place that no token has is T, with weight 0.

    Attributes:
        places: int32 `[B, E, C]`, the token's place in its row.
        weights: float32 `[B, E, C]`.
    """

    places: jax.Array
    weights: jax.Array


def softmax(logits: jax.Array, count: int) -> Chosen:
    """Weights are probabilities among all experts (Switch: Fedus et al. 2021, arXiv 2101.03961)."""
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits), count)
    return Chosen(experts, weights)


def softmax_top_k(logits: jax.Array, count: int) -> Chosen:
    """Weights are probabilities among the k chosen (Mixtral: Jiang et al. 2024, arXiv 2401.04088)."""
    best, experts = jax.lax.top_k(logits, count)
    return Chosen(experts, jax.nn.softmax(best))


def expert_choice(logits: jax.Array, valid: jax.Array, count: int) -> Slots:
    """Each expert takes the tokens of a row that want it most (Zhou et al. 2022, arXiv 2202.09368).

    Of n tokens that is `ceil(k n / E)`: a token has k experts on average. Whether a token is among them
    depends on all others of its row, later ones too.

    Args:
        logits: float32 `[B, T, E]`.
        valid: bool `[B, T]`, False for padding, which none takes.
        count: k.
    """
    probabilities = jnp.where(valid[..., None], jax.nn.softmax(logits), -1.0)
    length, experts = logits.shape[1:]
    most = math.ceil(count * length / experts)
    weights, places = jax.lax.top_k(jnp.swapaxes(probabilities, 1, 2), min(most, length))
    taken = -(-count * jnp.sum(valid, axis=1) // experts)[:, None, None]  # [B, 1, 1]
    there = (jnp.arange(weights.shape[2]) < taken) & (weights >= 0)
    return Slots(jnp.where(there, places, length), jnp.where(there, weights, 0.0))


class Router(NamedTuple):
    """An entry of the table.

    Attributes:
        choose: `(logits, k) -> Chosen` or, of those where experts do, `(logits, valid, k) -> Slots`.
        by_token: tokens choose.
        causal: what becomes of a token does not depend on later ones.
        least: the smallest k that teaches the router something, of several experts.
    """

    choose: Callable
    by_token: bool = True
    causal: bool = True
    least: int = 1


# Values of `config.model.router`.
ROUTERS = {
    'softmax': Router(softmax),
    'softmax_top_k': Router(softmax_top_k, least=2),
    'expert_choice': Router(expert_choice, by_token=False, causal=False),
}

# Values of `config.model.expert_dispatch`.
DISPATCHES = ('dropless', 'capacity')


def router(config: ModelConfig) -> Router:
    """Returns the config's entry of the table; raises InputError if there is none."""
    return lookup(ROUTERS, config.router, 'config.model.router')


def check(config: ModelConfig, streams: bool = False) -> None:
    """Raises InputError if a model cannot have such experts.

    Args:
        config: the model.
        streams: there is a second stream, for permutation language models.
    """
    if not config.experts:
        return
    chosen, place = router(config), f"config.model.router = '{config.router}'"
    lookup(dict.fromkeys(DISPATCHES), config.expert_dispatch, 'config.model.expert_dispatch')
    if config.experts_per_token > config.experts:
        raise InputError(
            f'config.model.experts_per_token = {config.experts_per_token} is more than '
            f'config.model.experts = {config.experts}.'
        )
    if config.experts_per_token < chosen.least and config.experts > 1:
        raise InputError(
            f'{place} gives the only expert of a token the weight 1, and learns nothing from it. '
            "Did you mean 'softmax', or config.model.experts_per_token = 2?"
        )
    if not chosen.causal and (config.architecture != 'encoder' or streams):
        raise InputError(
            f'{place} sees later tokens, so that a decoder, or what learns a permutation, would be shown '
            "what it is asked for. Did you mean 'softmax_top_k'?"
        )
    if streams and config.expert_dispatch == 'capacity':
        raise InputError(
            "config.model.expert_dispatch = 'capacity' lets tokens in by their places in the row; those of "
            "objective 'permutation' have another order. Did you mean 'dropless'?"
        )


def slots(chosen: Chosen, valid: jax.Array, experts: int, capacity: int) -> Slots:
    """Returns what experts take of tokens that chose them: of each row the first C.

    So whether a token is taken depends on those before it only (GShard lets all tokens' first choices in
    before any second one: there, a later token may take the place of an earlier one).

        chosen.experts [[0], [0], [1], [0]], E = 2, C = 2  ->  places [[0, 1], [2, 4]]

    Args:
        chosen: of `[B, T, k]`.
        valid: bool `[B, T]`, False for padding, which takes no place.
        experts: E.
        capacity: C.
    """
    rows, length, count = chosen.experts.shape
    wanted = jnp.where(valid[..., None], chosen.experts, experts).reshape(rows, length * count)
    queue = jnp.cumsum(jax.nn.one_hot(wanted, experts, dtype=jnp.int32), axis=1)
    place = jnp.minimum(wanted, experts - 1)[..., None]
    order = jnp.take_along_axis(queue, place, axis=2)[..., 0] - 1  # [B, T k]
    tokens = jnp.repeat(jnp.arange(length, dtype=jnp.int32), count)

    def row(wanted: jax.Array, order: jax.Array, weights: jax.Array) -> Slots:
        empty = jnp.full((experts, capacity), length, jnp.int32)
        at = wanted, order  # Beyond C, and of padding: dropped.
        return Slots(
            empty.at[at].set(tokens, mode='drop'),
            jnp.zeros(empty.shape, jnp.float32).at[at].set(weights, mode='drop'),
        )

    return jax.vmap(row)(wanted, order, chosen.weights.reshape(rows, -1))


def balance(logits: jax.Array, load: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the sum over tokens of their row's `E sum_e f_e P_e`: 1 a token if loads are even.

    f_e is the part of the row's choices that e has, P_e its mean probability (Fedus et al. 2021, section
    2.2). It is not linear: rows are the groups in which it is computed, so that it is the same however
    rows are divided into micro-batches and over devices.

    Args:
        logits: float32 `[B, T, E]`.
        load: float32 `[B, E]`, choices of each expert.
        valid: bool `[B, T]`, False for padding.
    """
    there = valid[..., None].astype(jnp.float32)
    probability = jnp.sum(there * jax.nn.softmax(logits), axis=1)  # [B, E]: n P
    share = load / jnp.maximum(jnp.sum(load, axis=1, keepdims=True), 1.0)
    return logits.shape[2] * jnp.sum(jax.lax.stop_gradient(share) * probability)


def z(logits: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the sum over tokens of `log(sum(exp(logits)))^2` (Zoph et al. 2022, arXiv 2202.08906)."""
    return jnp.sum(valid * jax.nn.logsumexp(logits, axis=2) ** 2)
