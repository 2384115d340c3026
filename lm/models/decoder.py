"""A decoder-only Transformer: GPT, Llama and what lies between.

Layers are stacked: every parameter of `layers` has a leading axis `[N]`, whether the layers run in a
compiled loop or are unrolled, so that a checkpoint fits both.
"""

import functools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import attention
from lm.config import ModelConfig
from lm.errors import InputError, lookup
from lm.layers import mixers
from lm.layers.attention import head_sizes
from lm.layers.block import Block, Group, make_norm
from lm.layers.dense import STDDEV, affine
from lm.layers.embed import Embed, sinusoids
from lm.layers.position import POSITIONS, rotary_angles
from lm.layers.tokens import Tokens
from lm.mesh import ROWS, constrain

# What the backward pass keeps, as a policy of jax.checkpoint.
REMATS = {
    'none': None,
    # Products with parameters only: not the [T, S] logits of attention, which are most of the memory.
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'full': jax.checkpoint_policies.nothing_saveable,
}

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


class Decoder(nn.Module):
    """Next-token logits.

    `Decoder(config, V, T).apply({'params': params}, inputs)` is `[B, T, V]`. Parameters are float32,
    at the paths that `lm/mesh.py` lists.

    Attributes:
        config: the model.
        vocab_size: V, of the tokenizer.
        max_length: tokens; learned positions end here.
    """

    config: ModelConfig
    vocab_size: int
    max_length: int

    @property
    def padded_vocab_size(self) -> int:
        """V, rounded up to `config.vocab_multiple`. No target is ever one of the added ids."""
        multiple = self.config.vocab_multiple
        return -(-self.vocab_size // multiple) * multiple

    @property
    def kinds(self) -> tuple[Any, ...]:
        """What the layers go through in turn: masks, or other entries of `lm.layers.mixers`.

        Raises:
            InputError: one is not known, or they do not divide the layers.
        """
        pattern, layers = self.config.attention, self.config.num_layers
        kinds = attention.parse_pattern(pattern)
        if not kinds or layers % len(kinds):
            raise InputError(
                f'config.model.num_layers = {layers} cannot be divided by the {len(kinds)} masks of '
                f'config.model.attention = {pattern}.'
            )
        return kinds

    def setup(self):
        c = self.config
        lookup(dict.fromkeys(POSITIONS), c.position, 'config.model.position')
        lookup(REMATS, c.remat, 'config.model.remat')
        dtype = jnp.dtype(c.dtype)
        self.embed = Embed(self.padded_vocab_size, c.embed_dim, dtype, split='tensor')
        if c.position == 'learned':
            self.position = Embed(self.max_length, c.embed_dim, dtype)
        self.dropout = nn.Dropout(c.dropout)
        self.layers = self._layer()
        if c.norm_placement == 'pre':  # 'post' has just applied one
            self.final_norm = make_norm(c)
        if not c.tie_embeddings:
            self.head = Head(self.padded_vocab_size, dtype)

    def __call__(
        self,
        inputs: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Returns logits, float32 `[B, T, V]`; the arguments are those of `hidden`."""
        return self.logits(self.hidden(inputs, positions, segment_ids, deterministic))

    def hidden(
        self,
        inputs: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Returns what the logits are computed from, `[B, T, D]` in the compute dtype.

        Args:
            inputs: int32 `[B, T]`, token ids.
            positions: int32 `[B, T]`, each token's place in its document. None: 0, 1, 2, ...
            segment_ids: int32 `[B, T]`; a token sees its own segment only. None: one a row.
            deterministic: no dropout. Else the caller gives a `dropout` rng.

        Raises:
            InputError: T is more than `max_length`, with learned positions.
        """
        if positions is None:
            positions = jnp.arange(inputs.shape[1], dtype=jnp.int32)[None]
            positions = jnp.broadcast_to(positions, inputs.shape)
        return self._run(inputs, positions, segment_ids, deterministic)

    def decode(
        self,
        inputs: jax.Array,
        positions: jax.Array,
        cache: Cache,
        valid: jax.Array | None = None,
        fresh: bool = False,
    ) -> tuple[jax.Array, Cache]:
        """As `hidden`, for tokens that follow those in the cache: a prompt, part of one, or a token a row.

        Args:
            inputs: int32 `[B, T]`.
            positions: int32 `[B, T]`, each token's place in its row. A token sees the places up to its own.
            cache: of `make_cache`.
            valid: bool `[B, T]`, False for the padding after a shorter prompt, which is not remembered.
                None: there is none.
            fresh: the cache is empty, and rows begin at place 0: a prompt is read as fast as in training.

        Returns:
            `[B, T, D]`, and the cache with these tokens in it.

        Raises:
            InputError: a mask lets tokens see what is not there yet.
        """
        c = self.config
        for kind in self.kinds:
            if not kind.is_causal:
                raise InputError(
                    f"config.model.attention: '{kind}' sees tokens to come, and cannot generate. "
                    f"Did you mean '{attention.causal_form(kind)}'?"
                )
        layers = self.variables['params']['layers']
        if not isinstance(layers, tuple):  # not of `for_decoding`
            layers = self._unstack(layers)
        x, angles = self._embed(inputs, positions)
        places = positions if valid is None else jnp.where(valid, positions, -1)
        tokens = Tokens(angles, places=places, fresh=fresh)
        layer, new_cache = self._layer(parent=None), []
        for params, layer_cache in zip(layers, cache, strict=True):
            x, layer_cache = layer.apply({'params': params}, x, tokens, layer_cache)
            new_cache.append(layer_cache)
        return (self.final_norm(x) if c.norm_placement == 'pre' else x), tuple(new_cache)

    def for_decoding(self, params: dict) -> dict:
        """Returns parameters that `decode` and `logits` compute the same from, faster.

        The layers are a tuple, and what is multiplied has the compute dtype: a loop around `decode` would
        otherwise copy every layer's part of the stack, and round it, for every token.
        """
        dtype = jnp.dtype(self.config.dtype)

        def rounded(path: tuple, leaf: jax.Array) -> jax.Array:
            return leaf.astype(dtype) if path[-1].key in ('kernel', 'embedding') else leaf

        params = jax.tree_util.tree_map_with_path(rounded, params)
        return params | {'layers': self._unstack(params['layers'])}

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 `[..., V]` of `[..., D]`; V is `padded_vocab_size`."""
        c = self.config
        logits = self.embed.attend(hidden) if c.tie_embeddings else self.head(hidden)
        if c.logit_softcap:
            logits = c.logit_softcap * jnp.tanh(logits / c.logit_softcap)
        return logits

    def make_cache(self, batch: int, length: int) -> Cache:
        """Returns an empty cache for `batch` rows of at most `length` tokens."""
        make = functools.partial(mixers.make_cache, self.config, batch=batch, length=length)
        kinds = self.kinds
        blocks = {f'block_{i}': make(kind) for i, kind in enumerate(kinds)}
        repeat = blocks if len(kinds) > 1 else blocks['block_0']
        return (repeat,) * (self.config.num_layers // len(kinds))

    def grow(self, cache: Cache, length: int) -> Cache:
        """Returns the cache with room for `length` tokens a row."""
        if len(self.kinds) == 1:
            return tuple(mixers.grow(layer, self.kinds[0], length) for layer in cache)
        return tuple(
            {
                name: mixers.grow(repeat[name], kind, length)
                for name, kind in zip(repeat, self.kinds, strict=True)
            }
            for repeat in cache
        )

    def _run(
        self,
        inputs: jax.Array,
        positions: jax.Array,
        segments: jax.Array | None,
        deterministic: bool,
    ) -> jax.Array:
        c = self.config
        x, angles = self._embed(inputs, positions)
        x = self.dropout(x, deterministic=deterministic)
        x = constrain(x, (ROWS, 'sequence', None))

        def layer(block: nn.Module, x: jax.Array, _: None):
            return block(x, Tokens(angles, segments), None, deterministic)

        if c.remat != 'none':
            # In a loop nothing can merge the two passes; unrolled, XLA must be kept from it.
            layer = nn.remat(layer, policy=REMATS[c.remat], prevent_cse=not c.scan_layers)
        length = c.num_layers // len(self.kinds)
        layers = nn.scan(
            layer,
            variable_axes={'params': 0},
            split_rngs={'params': True, 'dropout': True},
            length=length,
            unroll=1 if c.scan_layers else length,
        )
        x, _ = layers(self.layers, x, None)
        return self.final_norm(x) if c.norm_placement == 'pre' else x

    def _unstack(self, layers: dict) -> tuple[dict, ...]:
        """Returns the parameters of each layer, or of each repeat of a pattern, without the axis N."""
        repeats = self.config.num_layers // len(self.kinds)
        return tuple(jax.tree.map(operator.itemgetter(i), layers) for i in range(repeats))

    def _layer(self, **options) -> nn.Module:
        """Returns what is repeated: a layer, or one for each entry of the pattern."""
        first, *others = kinds = self.kinds
        c = self.config
        return Group(c, kinds, **options) if others else Block(c, first, **options)

    def _embed(self, inputs: jax.Array, positions: jax.Array):
        """Returns `[B, T, D]` with absolute positions in it, and the angles of rotary ones."""
        c = self.config
        x = self.embed(inputs)
        match c.position:
            case 'learned':
                if inputs.shape[1] > self.max_length:
                    raise InputError(
                        f'{inputs.shape[1]} tokens in a row are more than the {self.max_length} that '
                        "config.model.position = 'learned' was made for."
                    )
                return x + self.position(positions), None
            case 'sinusoidal':
                # The waves have an amplitude of 1; the paper scales embeddings up to meet them.
                waves = sinusoids(positions, c.embed_dim)
                return x * c.embed_dim**0.5 + waves.astype(x.dtype), None
            case 'rotary':
                return x, rotary_angles(positions, c, head_sizes(c)[2])
        return x, None
