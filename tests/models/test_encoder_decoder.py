"""Encoders and encoder-decoders: who sees what, decoding, and the sizes of published models."""

import dataclasses
import functools
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, decode, mesh, terms, tree
from lm.models import EncoderDecoder, example
from lm.models.encoder import Encoder
from lm.models.heads import HEADS, Head

BASE = dataclasses.replace(
    config.parse(base.get_config()).model,
    num_layers=2,
    encoder_layers=1,
    embed_dim=16,
    num_heads=4,
    mlp_dim=24,
)
VOCAB, TARGETS, SOURCES = 13, 8, 11
VARIANTS = {
    'rotary': {},
    't5': {'position': 'relative', 'relative_buckets': 8, 'relative_distance': 16},
    'xl': {'position': 'transformer_xl', 'num_kv_heads': 2, 'bias': True},
    '2017': {'position': 'sinusoidal', 'norm_placement': 'post', 'norm': 'layernorm', 'bias': True},
    'bart': {'position': 'learned', 'embed_norm': True, 'tie_embeddings': False},
    'patterns': {
        'attention': ('causal & window(3)', 'causal'),
        'encoder_attention': ('window(2) | global_tokens(1)',),
        'num_kv_heads': 2,
        'qk_norm': True,
    },
}
variants = pytest.mark.parametrize('name', VARIANTS)


def draw(model, seed=0):
    """Returns parameters large enough for each part to matter."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **example(model)))['params']
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        center = 1.0 if path.endswith('scale') else 0.0
        return jnp.asarray(center + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    return tree.map_with_path(one, shapes)


@functools.cache
def made(name):
    model = EncoderDecoder(dataclasses.replace(BASE, **VARIANTS[name]), VOCAB, TARGETS, SOURCES)
    return model, draw(model)


@functools.partial(jax.jit, static_argnums=0, static_argnames=('method', 'fresh'))
def apply(model, params, *args, **kwargs):
    return model.apply({'params': params}, *args, **kwargs)


def tokens(batch, length, seed=0):
    return np.random.default_rng(seed).integers(VOCAB, size=(batch, length)).astype(np.int32)


@pytest.mark.slow
@variants
def test_a_target_sees_all_of_its_source_and_no_later_target(name):
    model, params = made(name)
    inputs, sources = tokens(1, TARGETS), tokens(1, SOURCES, 1)
    width = BASE.embed_dim

    def logit(t, shift_inputs, shift_sources):
        """One logit as a function of what is added to the tokens' vectors."""

        def embed(next_function, args, kwargs, context):
            found = next_function(*args, **kwargs)
            if context.module.path == ('embed',) and context.method_name == '__call__':
                return found + (shift_sources if found.shape[1] == SOURCES else shift_inputs)
            return found

        with nn.intercept_methods(embed):
            return model.apply({'params': params}, inputs, encoder_inputs=sources)[0, t, 5]

    zeros = jnp.zeros((1, TARGETS, width)), jnp.zeros((1, SOURCES, width))
    gradient = jax.jit(jax.grad(logit, (1, 2)), static_argnums=0)
    for t in (0, 3, TARGETS - 1):
        by_input, by_source = gradient(t, *zeros)
        assert (np.abs(by_input[0, t + 1 :]).sum(-1) == 0).all()
        assert np.abs(by_input[0, t]).sum() > 0
        assert (np.abs(by_source[0]).sum(-1) > 0).all()


# `global_tokens(1)` of the patterns counts from the start of the row.
@pytest.mark.first_quick
@pytest.mark.parametrize('name', [name for name in VARIANTS if name != 'patterns'])
def test_packed_pairs_are_as_pairs_in_rows_of_their_own(name):
    model, params = made(name)
    inputs, sources = tokens(2, 4), tokens(2, 5, 1)

    want = apply(model, params, inputs, encoder_inputs=sources)
    numbers = lambda n: jnp.repeat(jnp.arange(1, 3), n)[None]  # noqa: E731
    packed = apply(
        model,
        params,
        inputs.reshape(1, -1),
        encoder_inputs=np.concatenate([sources.reshape(1, -1), [[7]]], axis=1).astype(np.int32),
        positions=jnp.tile(jnp.arange(4), 2)[None],
        segment_ids=numbers(4),
        encoder_positions=jnp.concatenate([jnp.tile(jnp.arange(5), 2), jnp.zeros(1, int)])[None],
        encoder_segment_ids=jnp.concatenate([numbers(5), jnp.zeros((1, 1), int)], axis=1),
    )
    np.testing.assert_allclose(packed.reshape(want.shape), want, atol=2e-5)


@pytest.mark.first_quick
@variants
def test_decoding_is_the_forward_pass(name):
    model, params = made(name)
    inputs, sources = tokens(3, TARGETS), tokens(3, SOURCES, 1)
    counts = np.array([11, 4, 7])
    segments = (np.arange(SOURCES) < counts[:, None]).astype(np.int32)
    want = apply(model, params, inputs, encoder_inputs=sources, encoder_segment_ids=segments)
    memory = jax.jit(decode.encoded, static_argnums=0)(model, params, (sources, counts))
    ready = model.for_decoding(params)
    step = functools.partial(apply, model, ready, method='decode')
    positions = np.broadcast_to(np.arange(3), (3, 3))
    cache = model.make_cache(3, TARGETS)
    hidden, cache = step(inputs[:, :3], positions, cache, fresh=True, **memory)
    found = [hidden]
    for t in range(3, TARGETS):
        hidden, cache = step(inputs[:, t : t + 1], np.full((3, 1), t), cache)
        found.append(hidden)
    logits = apply(model, ready, jnp.concatenate(found, axis=1), method='logits')
    np.testing.assert_allclose(logits, want, atol=3e-5)


@pytest.mark.first_quick
@pytest.mark.parametrize(
    'mask', ['full', 'window(2)', 'longformer(2, 1)', 'bigbird(3, 1, 1)', 'linear(causal=0)']
)
def test_an_encoder_ignores_padding(mask):
    model = Encoder(dataclasses.replace(BASE, attention=(mask,)), VOCAB, SOURCES)
    params = draw(model)
    inputs = tokens(2, SOURCES)
    segments = np.broadcast_to(np.arange(SOURCES) < 6, inputs.shape).astype(np.int32)
    other = np.where(segments, inputs, (inputs + 1) % VOCAB)
    one, two = (apply(model, params, x, segment_ids=segments)[:, :6] for x in (inputs, other))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize('kind', HEADS)
def test_heads_speak_of_each_token(kind):
    head = Head(kind, 3)
    model = Encoder(
        dataclasses.replace(BASE, attention=('full',), bias=True),
        VOCAB,
        SOURCES,
        heads=(('it', head),),
    )
    found = apply(model, draw(model), tokens(2, SOURCES))['it']
    assert found.dtype == jnp.float32
    last = {'tokens': (VOCAB,), 'output': (VOCAB,), 'discriminator': ()}.get(kind, (3,))
    assert found.shape == (2, SOURCES, *last)


def test_two_streams_see_lower_ranks_and_not_themselves():
    """A prediction depends on the tokens of lower ranks, and not on itself or later ones."""
    model = Encoder(BASE, VOCAB, SOURCES, streams=True, heads=(('tokens', Head('output')),))
    params = draw(model)
    order = np.array([[3, 0, 0, 1, 4, 2, 0, 5]], np.int32)
    inputs = tokens(1, 8)

    def predicted(inputs):
        return apply(model, params, inputs, order=order)['tokens'][0]

    plain = predicted(inputs)
    for other in range(8):
        changed = inputs.copy()
        changed[0, other] = (changed[0, other] + 1) % VOCAB
        moved = np.abs(predicted(changed) - plain).max(-1) > 0
        sees = (order[0, other] < order[0]) & (order[0] > 0)
        # Tokens of rank 0 are not predicted; what stands at their places says nothing.
        np.testing.assert_array_equal(moved[order[0] > 0], sees[order[0] > 0])


@pytest.mark.parametrize(
    ('name', 'count'),
    [
        # BERT base with the heads of masked tokens and next sentences, and T5 small, as published
        # (transformers' BertForPreTraining and T5ForConditionalGeneration); the Transformer of 2017 by
        # its sizes: the embedding, and six layers a side with biases and norms.
        ('bert_base', 110_106_428),
        ('t5_small', 60_506_624),
        # ElectraForPreTraining, and the generator: its positions, types and norm, a matrix and back, and
        # twelve layers of 64.
        (
            'electra_small',
            13_549_057
            + (512 * 128 + 2 * 128 + 2 * 128 + 129 * 64 + 65 * 128 + 2 * 128 + 30_522)
            + 12 * (4 * 65 * 64 + 65 * 256 + 257 * 64 + 4 * 64),
        ),
        # transformers' XLNetModel, and the bias of its logits.
        ('xlnet_base', 116_718_336 + 32_000),
        # As T5 1.1 small, 76,961,152: two matrices [V, D]; eight layers a side, with six heads of 64 and
        # gated MLPs of 1,024; last norms, and 32 buckets a head.
        (
            'ul2_small',
            2 * 32_128 * 512
            + 8 * (4 * 512 * 384 + 3 * 512 * 1024 + 2 * 512)
            + 8 * (8 * 512 * 384 + 3 * 512 * 1024 + 3 * 512)
            + 2 * (512 + 32 * 6),
        ),
        ('transformer_base_wmt14', 37_000 * 512 + 6 * (3_152_384 + 4_204_032)),
        # The same without biases, with norms at the ends, and on queries and keys of 64.
        (
            'wmt14_en_de',
            (37_000 + 120 + 2) * 512
            + 6 * (4 * 512**2 + 2 * 512 * 2048 + 2 * 512 + 2 * 64)
            + 6 * (8 * 512**2 + 2 * 512 * 2048 + 3 * 512 + 4 * 64),
        ),
        (
            'tatoeba_en_zh',
            (8000 + 2) * 256
            + 4 * (4 * 256**2 + 2 * 256 * 512 + 2 * 256 + 2 * 64)
            + 4 * (8 * 256**2 + 2 * 256 * 512 + 3 * 256 + 4 * 64),
        ),
    ],
)
def test_published_sizes(name, count):
    parsed = config.parse(importlib.import_module(f'configs.{name}').get_config())
    vocab = parsed.tokenizer.vocab_size + parsed.tokenizer.mask + parsed.tokenizer.sentinels
    model, *_ = terms.build(parsed, vocab, mesh.one_device())
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **example(model)))
    assert tree.size(shapes['params']) == count
