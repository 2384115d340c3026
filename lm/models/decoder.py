"""A decoder-only Transformer: GPT, Llama and what lies between.

Layers are stacked: every parameter of `layers` has a leading axis `[N]`, whether the layers run in a
compiled loop or are unrolled, so that a checkpoint fits both.
"""

import operator

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention import masks
from lm.config import ModelConfig
from lm.errors import InputError, lookup
from lm.layers.attention import head_sizes, make_cache
from lm.layers.block import Block, Group, make_norm
from lm.layers.dense import STDDEV, affine
from lm.layers.embed import Embed, sinusoids
from lm.layers.position import POSITIONS, rotary_angles
from lm.mesh import ROWS, constrain

# What the backward pass keeps, as a policy of jax.checkpoint.
REMATS = {
    'none': None,
    # Products with parameters only: not the [T, S] logits of attention, which are most of the memory.
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'full': jax.checkpoint_policies.nothing_saveable,
}

# Of each layer `{'key': [B, G, S, K], 'value': ...}`; of each repeat of a pattern, that by block.
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
    def masks(self) -> tuple[masks.Mask, ...]:
        """The masks that the layers go through in turn.

        Raises:
            InputError: a mask is not known, or they do not divide the layers.
        """
        pattern, layers = self.config.attention, self.config.num_layers
        if not pattern or layers % len(pattern):
            raise InputError(
                f'config.model.num_layers = {layers} cannot be divided by the {len(pattern)} masks of '
                f'config.model.attention = {pattern}.'
            )
        return tuple(masks.parse(expression) for expression in pattern)

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
        self, inputs: jax.Array, positions: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """As `hidden`, for tokens that follow those in the cache: a whole prompt, or one token a row.

        Args:
            inputs: int32 `[B, T]`.
            positions: int32 `[B, T]`, each token's place in its row, which is also its place in the
                cache. A token sees the places up to its own, so what was written beyond it (padding of
                a shorter prompt) is never seen before it is overwritten.
            cache: of `make_cache`.

        Returns:
            `[B, T, D]`, and the cache with these tokens in it.

        Raises:
            InputError: a mask lets tokens see what is not there yet.
        """
        c = self.config
        for mask in self.masks:
            if mask != masks.Causal():
                raise InputError(
                    f'config.model.attention = {c.attention} sees tokens to come, and cannot '
                    "generate. Did you mean ('causal',)?"
                )
        layers = self.variables['params']['layers']
        if not isinstance(layers, tuple):  # not of `for_decoding`
            layers = self._unstack(layers)
        x, angles = self._embed(inputs, positions)
        layer, new_cache = self._layer(parent=None), []
        for params, layer_cache in zip(layers, cache, strict=True):
            x, layer_cache = layer.apply(
                {'params': params}, x, angles, None, positions, layer_cache
            )
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
        layer = make_cache(self.config, batch, length)
        pattern = len(self.masks)
        repeat = layer if pattern == 1 else {f'block_{i}': layer for i in range(pattern)}
        return (repeat,) * (self.config.num_layers // pattern)

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
            return block(x, angles, segments, None, None, deterministic)

        if c.remat != 'none':
            # In a loop nothing can merge the two passes; unrolled, XLA must be kept from it.
            layer = nn.remat(layer, policy=REMATS[c.remat], prevent_cse=not c.scan_layers)
        length = c.num_layers // len(self.masks)
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
        repeats = self.config.num_layers // len(self.masks)
        return tuple(jax.tree.map(operator.itemgetter(i), layers) for i in range(repeats))

    def _layer(self, **options) -> nn.Module:
        """Returns what is repeated: a layer, or one for each mask of the pattern."""
        first, *others = self.masks
        c = self.config
        return Group(c, self.masks, **options) if others else Block(c, first, **options)

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
