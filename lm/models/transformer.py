"""What encoders and decoders have in common: embeddings, layers, and a last norm.

Layers are stacked: every parameter of `layers` has a leading axis `[N]`, whether the layers run in a
compiled loop or are unrolled, so that a checkpoint fits both. (Layers that share theirs have no axis.)
"""

import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import attention
from lm.config import ModelConfig
from lm.errors import InputError, lookup
from lm.layers import router
from lm.layers.attention import head_sizes
from lm.layers.block import Block, Group
from lm.layers.dense import PRODUCT, STDDEV, Dense
from lm.layers.embed import Embed, sinusoids
from lm.layers.norm import make_norm
from lm.layers.position import POSITIONS, RelativeBias, rotary_angles, rotary_width
from lm.layers.products import HISTORIES
from lm.layers.tokens import Tokens
from lm.mesh import ROWS, constrain
from lm.models import pipeline

# What the backward pass keeps, as a policy of jax.checkpoint.
REMATS = {
    'none': None,
    # Products with parameters only, as they are after rounding: not the [T, S] logits of attention, which
    # are most of the memory.
    'dots': jax.checkpoint_policies.save_only_these_names(PRODUCT),
    'full': jax.checkpoint_policies.nothing_saveable,
}
# What layers sow, by collection: of rows, or numbers that are sums over tokens.
SOWN = ('intermediates', 'experts')


class Transformer(nn.Module):
    """Vectors of tokens, `[B, T, D]`: encoders and decoders are made of it.

    Parameters are float32, at the paths that `lm/mesh.py` lists.

    Attributes:
        config: the model.
        vocab_size: V, of the tokenizer.
        max_length: tokens; learned positions end here.
        shared: the embedding, where it is another module's too; None is one of its own.
        crosses: layers read the memory that an encoder gives.
        streams: there is a second stream, for `order`.
    """

    config: ModelConfig
    vocab_size: int
    max_length: int
    shared: Embed | None = None
    crosses: bool = False
    streams: bool = False

    # Narrow embeddings of tokens are brought to D before places are added to them, without a bias, as in
    # OPT; and not after, as in ALBERT.
    widens_first: ClassVar[bool] = False

    @property
    def padded_vocab_size(self) -> int:
        """V, rounded up to `config.vocab_multiple`. No target is ever one of the added ids.

        Raises:
            InputError: `config.vocab_size` is less than V.
        """
        rows, multiple = self.config.vocab_size or self.vocab_size, self.config.vocab_multiple
        if rows < self.vocab_size:
            raise InputError(
                f'config.model.vocab_size = {rows} is less than the {self.vocab_size} ids of the tokenizer '
                '(with those of masks, sentinels and codes). 0 is as many as there are.'
            )
        return -(-rows // multiple) * multiple

    @property
    def kinds(self) -> tuple[Any, ...]:
        """What the layers go through in turn: masks, or other entries of `lm.layers.mixers`.

        Where not every layer has experts, the pattern is repeated until it has a whole number of those.

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
        every = self.config.expert_every if self.config.experts else 1
        repeats = math.lcm(len(kinds), every) // len(kinds)
        if layers % (repeats * len(kinds)):
            raise InputError(
                f'config.model.num_layers = {layers} cannot be divided by {repeats * len(kinds)}, after '
                f'which config.model.expert_every = {every} and the {len(kinds)} entries of '
                f'config.model.attention = {pattern} begin anew.'
            )
        return kinds * repeats

    def setup(self):
        c = self.config
        lookup(dict.fromkeys(POSITIONS), c.position, 'config.model.position')
        lookup(REMATS, c.remat, 'config.model.remat')
        router.check(c, self.streams)
        if c.parallel_residual and (c.norm_placement == 'post' or self.crosses):
            raise InputError(
                'config.model.parallel_residual = True is for decoders and encoders whose norms come '
                "first: set config.model.norm_placement = 'pre'."
            )
        dtype = jnp.dtype(c.dtype)
        self.embed = self.shared or make_embed(c, self.padded_vocab_size)
        if c.position == 'learned':
            rows = self.max_length + c.position_offset
            self.position = Embed(rows, self._place_dim, dtype)
        if c.position == 'relative':
            self.relative = RelativeBias(c)
        if self.streams:
            init = nn.initializers.normal(STDDEV)
            self.query_stream = self.param('query_stream', init, (self._place_dim,))
        if embeds_types(c):
            self.token_type = Embed(c.token_types, self._place_dim, dtype)
        if c.embed_norm:
            self.embed_norm = make_norm(c)
        if embedding_dim(c) != c.embed_dim:
            bias = c.bias and not self.widens_first
            self.embed_projection = Dense((c.embed_dim,), bias=bias, dtype=dtype)
        self.dropout = nn.Dropout(c.dropout)
        self.layers = self._layer()
        if c.norm_placement != 'post':  # that has just applied one
            self.final_norm = make_norm(c)

    def hidden(
        self,
        inputs: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
        *,
        token_types: jax.Array | None = None,
        in_prefix: jax.Array | None = None,
        order: jax.Array | None = None,
        memory: jax.Array | None = None,
        memory_segments: jax.Array | None = None,
    ) -> jax.Array:
        """Returns what predictions are computed from, `[B, T, D]` in the compute dtype.

        Args:
            inputs: int32 `[B, T]`, token ids.
            positions: int32 `[B, T]`, each token's place in its document. None: 0, 1, 2, ...
            segment_ids: int32 `[B, T]`; a token sees its own segment only. None: one a row.
            deterministic: no dropout. Else the caller gives a `dropout` rng.
            token_types: int32 `[B, T]`, which of several texts each token is of (BERT's segments).
            in_prefix: bool `[B, T]`, for masks with `prefix`.
            order: int32 `[B, T]`, ranks of tokens in a permutation language model (XLNet's two streams):
                what is predicted of a token of rank r knows its place, and the tokens of ranks below r.
                Masks are asked about ranks, and what is of a later one is not seen whatever they say.
            memory: `[B, S, D]`, what an encoder made of the other text, where layers read it.
            memory_segments: int32 `[B, S]`; a token reads its own segment's. None: all.

        Raises:
            InputError: T is more than `max_length`, with learned positions.
        """
        c = self.config
        if positions is None:
            positions = jnp.arange(inputs.shape[1], dtype=jnp.int32)[None]
            positions = jnp.broadcast_to(positions, inputs.shape)
        x, angles = self._place(self._embedded(inputs), positions, token_types)
        if order is not None:
            # The second stream begins with one vector for all, and knows where it is by its position.
            second = jnp.broadcast_to(self.query_stream.astype(x.dtype), x.shape)
            x = jnp.concatenate([x, self._place(second, positions, token_types)[0]], axis=1)
        x = self.dropout(x, deterministic=deterministic)
        x = constrain(x, (ROWS, 'sequence', None))
        relative = self._relative()

        tokens = Tokens(
            angles,
            segment_ids,
            in_prefix,
            order,
            order is not None,
            types=None if embeds_types(c) else token_types,
            relative=relative,
            memory=memory,
            memory_segments=memory_segments,
        )
        plan = None if self.is_initializing() else pipeline.schedule(c, x.shape[0])
        run = self._in_turn if plan is None else functools.partial(self._in_stages, plan)
        x = run(x, tokens, deterministic)
        return self._last(x if order is None else x[:, inputs.shape[1] :])

    def _in_turn(self, x: jax.Array, tokens: Tokens, deterministic: bool) -> jax.Array:
        """Returns `[B, T, D]` after all layers, one after the other."""
        c = self.config

        def layer(block: nn.Module, x: jax.Array, _: None):
            return block(x, tokens, None, deterministic)

        if c.remat != 'none':
            # In a loop nothing can merge the two passes; unrolled, XLA must be kept from it.
            layer = nn.remat(layer, policy=REMATS[c.remat], prevent_cse=not c.scan_layers)
        length = c.num_layers // len(self.kinds)
        own = {'params': 0, HISTORIES: 0}  # What each layer has of its own, unless they share it.
        each = dict.fromkeys(SOWN, 0) | ({} if c.share_layers else own)
        layers = nn.scan(
            layer,
            variable_axes=each,
            variable_broadcast=list(own) if c.share_layers else False,
            split_rngs={'params': not c.share_layers, 'dropout': True},
            length=length,
            unroll=1 if c.scan_layers else length,
        )
        return layers(self.layers, x, None)[0]

    def _in_stages(
        self, plan: pipeline.Schedule, x: jax.Array, tokens: Tokens, deterministic: bool
    ) -> jax.Array:
        """As `_in_turn`, over the stages of the mesh; dropout is of other random numbers."""
        c, block = self.config, self._layer(parent=None)
        sows = [name for name in SOWN if self.is_mutable_collection(name)]

        def layer(params: Any, x: jax.Array, facts: Any, rng: jax.Array | None):
            tokens, relative = facts
            (x, _), found = block.apply(
                {'params': params},
                x,
                tokens.replace(relative=relative),
                None,
                deterministic,
                rngs=None if rng is None else {'dropout': rng},
                mutable=sows,
            )
            return x, found

        rng = self.make_rng('dropout') if self.has_rng('dropout') else None
        x, sown = pipeline.run(
            layer,
            self.variables['params']['layers'],
            x,
            tokens.replace(relative=None),
            tokens.relative,
            plan,
            rng,
            c.remat,
            unroll=not c.scan_layers,
        )
        for collection, values in sown.items():
            for name, value in values.items():
                self.layers.put_variable(collection, name, value)
        return x

    def _layer(self, **options) -> nn.Module:
        """Returns what is repeated: a layer, or one for each entry of the pattern."""
        kinds, every = self.kinds, self.config.expert_every
        experts = tuple(
            self.config.experts > 0 and i % every == every - 1 for i in range(len(kinds))
        )
        options |= {'crosses': self.crosses}
        if len(kinds) > 1:
            return Group(self.config, kinds, experts, **options)
        return Block(self.config, kinds[0], experts=experts[0], **options)

    def _relative(self) -> jax.Array | None:
        return self.relative.table() if self.config.position == 'relative' else None

    def _last(self, x: jax.Array) -> jax.Array:
        return x if self.config.norm_placement == 'post' else self.final_norm(x)

    def _embedded(self, inputs: jax.Array) -> jax.Array:
        scale = self.config.embed_scale
        x = self.embed(inputs) if scale == 1 else scale * self.embed(inputs)
        return self._widened(x) if self.widens_first else x

    def _widened(self, x: jax.Array) -> jax.Array:
        return x if x.shape[-1] == self.config.embed_dim else self.embed_projection(x)

    @property
    def _place_dim(self) -> int:
        return self.config.embed_dim if self.widens_first else embedding_dim(self.config)

    def _place(
        self, x: jax.Array, positions: jax.Array, token_types: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Returns `[B, T, D]` with absolute positions and kinds in it, and the angles of rotary ones."""
        c, angles = self.config, None
        match c.position:
            case 'learned':
                if x.shape[1] > self.max_length:
                    raise InputError(
                        f'{x.shape[1]} tokens in a row are more than the {self.max_length} that '
                        "config.model.position = 'learned' was made for."
                    )
                x += self.position(positions + c.position_offset)
            case 'sinusoidal':
                # The waves have an amplitude of 1; the paper scales embeddings up to meet them.
                x = x * x.shape[-1] ** 0.5 + sinusoids(positions, x.shape[-1]).astype(x.dtype)
            case 'rotary':
                angles = rotary_angles(positions, c, rotary_width(c, head_sizes(c)[2]))
        if embeds_types(c):
            x += self.token_type(jnp.zeros_like(positions) if token_types is None else token_types)
        if c.embed_norm:
            x = self.embed_norm(x)
        return self._widened(x), angles


def make_embed(config: ModelConfig, size: int) -> Embed:
    """Returns the embedding of `size` tokens."""
    return Embed(size, embedding_dim(config), jnp.dtype(config.dtype), split='tensor')


def embedding_dim(config: ModelConfig) -> int:
    """Returns how wide the embeddings are: D, unless they are factored."""
    return config.embedding_dim or config.embed_dim


def embeds_types(config: ModelConfig) -> bool:
    """Returns whether kinds of tokens are in the embeddings; Transformer-XL has them in the logits."""
    return config.token_types > 0 and config.position != 'transformer_xl'
