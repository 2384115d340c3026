"""Relative positions: rotary, with ways to stretch it to longer contexts, and biases (ALiBi's, T5's)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ModelConfig
from lm.errors import InputError, lookup
from lm.layers.dense import STDDEV

POSITIONS = (
    *('rotary', 'learned', 'sinusoidal', 'alibi'),
    *('relative', 'transformer_xl', 'none'),  # the second is in `lm/layers/transformer_xl.py`
)


def _unscaled(frequencies: np.ndarray, config: ModelConfig, width: int) -> np.ndarray:
    return frequencies


def _linear(frequencies: np.ndarray, config: ModelConfig, width: int) -> np.ndarray:
    """Position interpolation (Chen et al. 2023, https://arxiv.org/abs/2306.15595)."""
    return frequencies / config.rotary_factor


def _ntk(frequencies: np.ndarray, config: ModelConfig, width: int) -> np.ndarray:
    """NTK-aware: a larger base, so that only long waves stretch (in Peng et al. 2023, section 3.1)."""
    return frequencies * config.rotary_factor ** (-np.arange(0, width, 2) / max(width - 2, 1))


def _llama3(frequencies: np.ndarray, config: ModelConfig, width: int) -> np.ndarray:
    """Llama 3.1's, as published in its code (https://github.com/meta-llama/llama-models).

    Waves shorter than 1/4 of the original context stay, waves longer than it are stretched by the
    factor, and those between go over from one to the other.
    """
    turns = _original_length(config) * frequencies / (2 * math.pi)
    keep = np.clip((turns - 1) / (4 - 1), 0, 1)
    return keep * frequencies + (1 - keep) * frequencies / config.rotary_factor


def _yarn(frequencies: np.ndarray, config: ModelConfig, width: int) -> np.ndarray:
    """NTK by parts (Peng et al. 2023, https://arxiv.org/abs/2309.00071): a ramp over the dimensions.

    Dimensions that turn more than 32 times in the original context stay, those of less than one turn
    are stretched by the factor.
    """
    length = _original_length(config)

    def dimension(turns: float) -> float:
        """The pair whose wave turns so often in the original context."""
        return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rotary_base))

    low = max(math.floor(dimension(32)), 0)
    high = min(math.ceil(dimension(1)), width - 1)
    stretch = np.clip((np.arange(width // 2) - low) / max(high - low, 1e-3), 0, 1)
    return (1 - stretch) * frequencies + stretch * frequencies / config.rotary_factor


SCALINGS = {
    'none': _unscaled,
    'linear': _linear,
    'ntk': _ntk,
    'llama3': _llama3,
    'yarn': _yarn,
}


def _original_length(config: ModelConfig) -> int:
    if config.rotary_original_length < 1:
        raise InputError(
            f"config.model.rotary_scaling = '{config.rotary_scaling}' needs "
            'config.model.rotary_original_length: the context, in tokens, before stretching.'
        )
    return config.rotary_original_length


def rotary_frequencies(config: ModelConfig, width: int) -> np.ndarray:
    """Returns float64 `[K / 2]`, radians a token: `base^(-2i / K)`, stretched as configured.

    Raises:
        InputError: K is odd, the scaling is not known or lacks its original length.
    """
    if width % 2:
        raise InputError(
            f"config.model.position = 'rotary' turns pairs, and head_dim = {width} is odd. "
            f'Did you mean {width + 1}?'
        )
    scale = lookup(SCALINGS, config.rotary_scaling, 'config.model.rotary_scaling')
    frequencies = config.rotary_base ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    return scale(frequencies, config, width)


def rotary_width(config: ModelConfig, width: int) -> int:
    """Returns R, how many of a head's K features are turned."""
    return int(config.rotary_fraction * width)


def rotary_angles(
    positions: jax.Array, config: ModelConfig, width: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the sine and cosine that `rotate` takes, float32 `[B, T, K / 2]` each.

    Args:
        positions: int32 `[B, T]`.
        config: `rotary_*`.
        width: K.
    """
    frequencies = rotary_frequencies(config, width).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    # YaRN also sharpens attention: each side by the root of its temperature (section 3.4).
    yarn = config.rotary_scaling == 'yarn' and config.rotary_factor > 1
    root = 0.1 * math.log(config.rotary_factor) + 1.0 if yarn else 1.0
    return root * jnp.sin(angles), root * jnp.cos(angles)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns pairs by their position's angle (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    The product of a turned query and a turned key depends on their distance only. Of the first R features
    pair i is made of i and i + R / 2 (as in GPT-NeoX and Llama's Hugging Face form); the others stay.

    Args:
        x: `[B, T, H, K]`.
        angles: sine and cosine, `[B, T, R / 2]`.
    """
    sin, cos = (a[:, :, None, :] for a in angles)  # [B, T, 1, R / 2]
    pairs = sin.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), (pairs, 2 * pairs), axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def alibi_slopes(heads: int) -> np.ndarray:
    """Returns float32 `[H]`: `2^(-8/H), 2^(-16/H), ...` (Press et al. 2021, https://arxiv.org/abs/2108.12409).

    For 8 heads 1/2, 1/4, ... 1/256. Where H is no power of two, the rest are every other slope of the
    next power, as in the paper's code.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4.0 * np.arange(1, 2 * power + 1, 2) / power)
    return np.concatenate([slopes, between])[:heads].astype(np.float32)


def alibi_bias(heads: int, q_positions: jax.Array, k_positions: jax.Array) -> jax.Array:
    """Returns the bias `-slope * |distance|`, float32 `[B or 1, H, T, S]`.

    Args:
        heads: H.
        q_positions: int32 `[B or 1, T]`.
        k_positions: int32 `[B or 1, S]`.
    """
    distance = jnp.abs(q_positions[:, :, None] - k_positions[:, None, :])
    return -alibi_slopes(heads)[:, None, None] * distance[:, None].astype(jnp.float32)


class RelativeBias(nn.Module):
    """A learned number for each bucket of distances and each head, shared by all layers (T5).

    Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.1.
    """

    config: ModelConfig

    @nn.compact
    def table(self) -> jax.Array:
        """Returns float32 `[buckets, H]`."""
        c = self.config
        init = nn.initializers.normal(STDDEV)
        return self.param('bias', init, (c.relative_buckets, c.num_heads))


def relative_buckets(
    distances: jax.Array, buckets: int, furthest: int, bidirectional: bool
) -> jax.Array:
    """Returns the bucket of each distance, int32.

    Half of the buckets hold one distance each, the others ever more (on a logarithmic scale) up to
    `furthest`; all that is further shares the last. Of 8 buckets up to 16, looking back:
    distances 0, -1, -2, -3 are in 0, 1, 2, 3, then -4 and -5 in 4, -6 and -7 in 5, -8 to -11 in 6, and -12
    and what is further in 7.

    Args:
        distances: int32, place of the key minus that of the query.
        buckets: how many.
        furthest: tokens.
        bidirectional: the second half is for keys after the query. Else these share bucket 0.
    """
    first = 0
    if bidirectional:
        buckets //= 2
        first = jnp.where(distances > 0, buckets, 0)
        distances = jnp.abs(distances)
    else:
        distances = jnp.maximum(-distances, 0)
    exact = buckets // 2
    furthest = max(furthest, exact + 1)
    share = jnp.log(jnp.maximum(distances, 1) / exact) / math.log(furthest / exact)
    wide = exact + (share * (buckets - exact)).astype(jnp.int32)
    return first + jnp.where(distances < exact, distances, jnp.minimum(wide, buckets - 1))


def relative_bias(
    table: jax.Array,
    places: tuple[jax.Array, jax.Array] | int,
    furthest: int,
    bidirectional: bool,
) -> jax.Array:
    """Returns what is added to the logits, float32 `[B or 1, H, T, S]`.

    Args:
        table: float32 `[buckets, H]`, of `RelativeBias`.
        places: int32 `[B or 1, T]` and `[B or 1, S]` of queries and keys; or T, for 0, 1, 2, ... of both.
        furthest: tokens; `config.model.relative_distance`.
        bidirectional: as in `relative_buckets`.
    """
    count = table.shape[0]
    if not isinstance(places, int):
        # A length that is open (`jax.export`) is of the same places, one by one.
        row = None if isinstance(places, tuple) else jnp.arange(places)[None]
        q_places, k_places = places if row is None else (row, row)
        distances = k_places[:, None, :] - q_places[:, :, None]
        found = table[relative_buckets(distances, count, furthest, bidirectional)]
        return jnp.moveaxis(found, 3, 1)
    length = places
    distances = jnp.arange(-(length - 1), length + 1)
    each = table[relative_buckets(distances, count, furthest, bidirectional)].T  # [H, 2 T]
    return shifted(jnp.broadcast_to(each[:, None], (each.shape[0], length, 2 * length)))[None]


def shifted(scores: jax.Array) -> jax.Array:
    """Lays out by place what is known by distance, `[..., T, W] -> [..., T, T]`, W > T.

    Row i, column m is of query i and the key that is m - (T - 1) places after it. There is no gather,
    whose gradient would be a scatter of all pairs: each row begins one number further to the left than the
    one above. For keys more than W - T places after their query it gives numbers of other rows.

    >>> shifted([[9, 1, 2], [3, 4, 9]])
    [[1, 2], [3, 4]]
    """
    *rest, length, width = scores.shape
    flat = scores.reshape(*rest, -1)[..., length - 1 :][..., : length * (width - 1)]
    return flat.reshape(*rest, length, width - 1)[..., :length]
