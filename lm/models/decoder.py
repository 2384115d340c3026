"""A decoder: GPT, Llama and what lies between; and the second half of an encoder-decoder."""

import functools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import attention
from lm.errors import InputError
from lm.layers import mixers
from lm.layers.dense import STDDEV, Dense, affine
from lm.layers.tokens import Tokens
from lm.models.transformer import Transformer, embedding_dim

# Of each layer what its mixer keeps, by name; of each repeat of a pattern, that by block.
Cache = tuple[dict, ...]


class Head(nn.Module):
    """An output matrix of its own, `[D, V]`."""

    size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.size)
        kernel = self.param('kernel', nn.initializers.normal(STDDEV), shape)
        return affine(x.astype(self.dtype), kernel, dtype=jnp.float32)


class Decoder(Transformer):
    """Next-token logits.

    `Decoder(config, V, T).apply({'params': params}, inputs)` is `[B, T, V]`.
    """

    widens_first = True

    def setup(self):
        super().setup()
        if (narrow := embedding_dim(self.config)) != self.config.embed_dim:
            self.output_projection = Dense((narrow,), dtype=jnp.dtype(self.config.dtype))
        if not self.config.tie_embeddings:
            self.head = Head(self.padded_vocab_size, jnp.dtype(self.config.dtype))
        if self.config.logit_bias:
            shape = (self.padded_vocab_size,)
            self.logit_bias = self.param('logit_bias', nn.initializers.zeros, shape)

    def __call__(self, inputs: jax.Array, *args, **kwargs) -> jax.Array:
        """Returns logits, float32 `[B, T, V]`; the arguments are those of `hidden`."""
        return self.logits(self.hidden(inputs, *args, **kwargs))

    def decode(
        self,
        inputs: jax.Array,
        positions: jax.Array,
        cache: Cache,
        valid: jax.Array | None = None,
        fresh: bool = False,
        memory: jax.Array | None = None,
        memory_segments: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """As `hidden`, for tokens that follow those in the cache: a prompt, part of one, or a token a row.

        Args:
            inputs: int32 `[B, T]`.
            positions: int32 `[B, T]`, each token's place in its row. A token sees the places up to its own.
            cache: of `make_cache`.
            valid: bool `[B, T]`, False for the padding after a shorter prompt, which is not remembered.
                None: there is none.
            fresh: the cache is empty, and rows begin at place 0: a prompt is read as fast as in training.
            memory: `[B, S, D]`, as in `hidden`, with the prompt; then it is in the cache.
            memory_segments: int32 `[B, S]`; all tokens of the prompt, and after it, are of segment 1.

        Returns:
            `[B, T, D]`, and the cache with these tokens in it.

        Raises:
            InputError: a mask lets tokens see what is not there yet.
        """
        for kind in self.kinds:
            if not attention.without_prefix(kind).is_causal:
                raise InputError(
                    f"config.model.attention: '{kind}' sees tokens to come, and cannot generate. "
                    f"Did you mean '{attention.causal_form(kind)}'?"
                )
        layers = self.variables['params']['layers']
        if not isinstance(layers, tuple):  # not of `for_decoding`
            layers = self._unstack(layers)
        x, angles = self._place(self._embedded(inputs), positions)
        places = positions if valid is None else jnp.where(valid, positions, -1)
        # A prompt is a prefix, whose tokens see each other; those after it see all of it anyway.
        in_prefix = None
        if fresh and any(attention.without_prefix(kind) != kind for kind in self.kinds):
            in_prefix = jnp.ones(inputs.shape, bool) if valid is None else valid
        tokens = Tokens(
            angles,
            in_prefix=in_prefix,
            relative=self._relative(),
            memory=memory,
            memory_segments=memory_segments,
            places=places,
            fresh=fresh,
        )
        layer, new_cache = self._layer(parent=None), []
        for params, layer_cache in zip(layers, cache, strict=True):
            x, layer_cache = layer.apply({'params': params}, x, tokens, layer_cache)
            new_cache.append(layer_cache)
        return self._last(x), tuple(new_cache)

    def for_decoding(self, params: dict) -> dict:
        """Returns parameters that `decode` and `logits` compute the same from, faster.

        The layers are a tuple, and what is multiplied in the compute dtype has it: a loop around `decode`
        would otherwise copy every layer's part of the stack, and round it, for every token.
        """
        dtype = jnp.dtype(self.config.dtype)

        def rounded(path: tuple, leaf: jax.Array) -> jax.Array:
            multiplied = path[-1].key in ('kernel', 'embedding') and path[-2].key != 'router'
            return leaf.astype(dtype) if multiplied else leaf

        params = jax.tree_util.tree_map_with_path(rounded, params)
        return params | {'layers': self._unstack(params['layers'])}

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 `[..., V]` of `[..., D]`; V is `padded_vocab_size`."""
        c = self.config
        if c.logit_scale != 1:
            hidden = (c.logit_scale * hidden).astype(hidden.dtype)
        if embedding_dim(c) != c.embed_dim:
            hidden = self.output_projection(hidden)
        logits = self.embed.attend(hidden) if c.tie_embeddings else self.head(hidden)
        if c.logit_bias:
            logits += self.logit_bias
        if c.logit_softcap:
            logits = c.logit_softcap * jnp.tanh(logits / c.logit_softcap)
        return logits

    def make_cache(self, batch: int, length: int) -> Cache:
        """Returns an empty cache for `batch` rows of at most `length` tokens."""
        make = functools.partial(mixers.make_cache, self.config, batch=batch, length=length)
        kinds = self.kinds
        blocks = {f'block_{i}': self._with_memory(make(kind)) for i, kind in enumerate(kinds)}
        repeat = blocks if len(kinds) > 1 else blocks['block_0']
        return (repeat,) * (self.config.num_layers // len(kinds))

    def grow(self, cache: Cache, length: int) -> Cache:
        """Returns the cache with room for `length` tokens a row."""

        def grown(layer: dict, kind: Any) -> dict:
            if self.crosses:
                return layer | {'own': mixers.grow(layer['own'], kind, length)}
            return mixers.grow(layer, kind, length)

        if len(self.kinds) == 1:
            return tuple(grown(layer, self.kinds[0]) for layer in cache)
        return tuple(
            {f'block_{i}': grown(repeat[f'block_{i}'], kind) for i, kind in enumerate(self.kinds)}
            for repeat in cache
        )

    def _with_memory(self, own: dict) -> dict:
        """Returns the cache of a layer that also has room for a memory's keys and values."""
        return {'own': own, 'memory': {}} if self.crosses else own

    def _unstack(self, layers: dict) -> tuple[dict, ...]:
        """Returns the parameters of each layer, or of each repeat of a pattern, without the axis N."""
        repeats = self.config.num_layers // len(self.kinds)
        if self.config.share_layers:
            return (layers,) * repeats
        return tuple(jax.tree.map(operator.itemgetter(i), layers) for i in range(repeats))
