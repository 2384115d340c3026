"""Positions as Transformer-XL and XLNet have them: logits know how far apart query and key are."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import matmul
from lm.attention.block import split_heads
from lm.config import ModelConfig
from lm.errors import InputError
from lm.layers.dense import STDDEV, affine
from lm.layers.embed import sinusoids
from lm.layers.position import shifted

Places = tuple[jax.Array, jax.Array] | int


class DistanceScores(nn.Module):
    """What is added to logits for the distance of two tokens, and for whether they are of one type.

    With R(d) the sinusoids of a distance, `[D]`, a matrix W of each layer, and u, v and s of each head, a
    logit is `((q + u) . k + (q + v) . W R(i - j) + (q + s) . e) / sqrt(K)`, where e is one vector for two
    tokens of the same type, and another for others; it is only there with `config.token_types`.

    Dai et al. 2019, https://arxiv.org/abs/1901.02860, section 3.3; Yang et al. 2019,
    https://arxiv.org/abs/1906.08237, section 2.5. Memories of earlier segments are not kept.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        groups: int,
        places: Places,
        types: jax.Array | None,
        both: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns `q + u`, `[B, T, H, K]`, and the rest of the logits, float32 `[B, H, T, S]`.

        Args:
            query: q, `[B, T, H, K]`.
            groups: G. W is as large as the matrix of keys, and shared by heads as these are.
            places: int32 `[B, T]` and `[B or 1, S]` of queries and keys; or S, for 0, 1, 2, ... of keys,
                and of queries, once for each of their streams.
            types: int32 `[B, S]`, with S places alone. None: all tokens are of one.
            both: keys are looked for after the query too.

        Raises:
            InputError: D is odd.
        """
        features, width, heads = self.config.embed_dim, query.shape[3], query.shape[2]
        if features % 2:
            raise InputError(
                "config.model.position = 'transformer_xl' has waves in pairs, and embed_dim = "
                f'{features} is odd. Did you mean {features + 1}?'
            )
        init = nn.initializers.normal(STDDEV)
        kernel = self.param('kernel', init, (features, groups, width))
        names = (
            ('content', 'distance', 'type') if self.config.token_types else ('content', 'distance')
        )
        asking = {
            name: query + self.param(f'{name}_bias', init, (heads, width)).astype(query.dtype)
            for name in names
        }
        by_distance = split_heads(asking['distance'], groups)
        if isinstance(places, tuple):
            logits = _at_places(by_distance, kernel, *places)
        else:
            logits = _in_order(by_distance, kernel, places, both)
        logits = logits.reshape(len(query), heads, *logits.shape[3:])  # [B, H, T, S]
        if self.config.token_types:
            vectors = self.param('type_embedding', init, (2, heads, width))
            if types is not None:
                logits += _by_type(asking['type'], vectors.astype(query.dtype), types)
        return asking['content'], width**-0.5 * logits


def _in_order(query: jax.Array, kernel: jax.Array, length: int, both: bool) -> jax.Array:
    """Returns `[B, G, R, T, S]`: one product for each distance, moved to where it belongs.

    Args:
        query: q + v, `[B, G, R, T, K]`; T is S, or a multiple.
        kernel: `[D, G, K]`.
        length: S.
        both: else keys after the query get any number.
    """
    columns = 2 * length if both else length + 1
    distances = length - 1 - jnp.arange(columns)  # of the query from the key
    waves = sinusoids(distances, len(kernel)).astype(query.dtype)
    keys = jnp.moveaxis(affine(waves, kernel), 1, 0)  # [G, W, K]
    scores = matmul.dot(jnp.moveaxis(query, 1, 0), keys, ((4,), (2,)), batch=1)  # [G, B, R, T, W]
    scores = jnp.moveaxis(scores, 0, 1)
    streams = scores.reshape(*scores.shape[:3], -1, length, columns)
    return shifted(streams).reshape(*scores.shape[:4], length)


def _at_places(
    query: jax.Array, kernel: jax.Array, q_places: jax.Array, k_places: jax.Array
) -> jax.Array:
    """As `_in_order`, of tokens anywhere: a token at a time has few distances to share with others.

    The wave of a difference is a sum of products of waves: sin(i - j) = sin i cos j - cos i sin j.
    """
    query, kernel = query.astype(jnp.float32), kernel.astype(jnp.float32)
    sines, cosines = jnp.split(jnp.einsum('bgrtk,dgk->bgrtd', query, kernel), 2, axis=-1)
    sin, cos = jnp.split(sinusoids(q_places, len(kernel))[:, None, None], 2, axis=-1)
    turned = jnp.concatenate([cosines * sin - sines * cos, sines * sin + cosines * cos], axis=-1)
    waves = jnp.broadcast_to(
        sinusoids(k_places, len(kernel)), (len(query), k_places.shape[1], len(kernel))
    )
    return jnp.einsum('bgrtd,bsd->bgrts', turned, waves)


def _by_type(query: jax.Array, vectors: jax.Array, types: jax.Array) -> jax.Array:
    """Returns float32 `[B, H, T, S]` of q + s, `[B, T, H, K]`, vectors `[2, H, K]` and types `[B, S]`."""
    same, other = jnp.einsum('bthk,nhk->nbht', query, vectors, preferred_element_type=jnp.float32)
    q_types = jnp.tile(types, (1, query.shape[1] // types.shape[1]))
    alike = (q_types[:, :, None] == types[:, None, :])[:, None]  # [B, 1, T, S]
    return jnp.where(alike, same[..., None], other[..., None])
