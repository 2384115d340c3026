"""The decoder over all kinds of its parts: causality, packing, decoding, scan and remat."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, mesh, tree
from lm.errors import InputError
from lm.layers.block import PLACEMENTS
from lm.layers.mlp import ACTIVATIONS
from lm.layers.norm import NORMS
from lm.layers.position import POSITIONS
from lm.losses import chunked_cross_entropy
from lm.models.decoder import Decoder
from lm.models.transformer import REMATS

BASE = dataclasses.replace(
    config.parse(base.get_config()).model, num_layers=2, embed_dim=16, num_heads=4, mlp_dim=24
)
VOCAB, LENGTH = 13, 12

# Some that are used together, and cover most; then each key's kinds in turn, all else as in BASE.
TOGETHER = {
    'gpt2': {'position': 'learned', 'norm': 'layernorm', 'bias': True, 'tie_embeddings': True},
    'llama': {
        'activation': 'swiglu',
        'num_kv_heads': 2,
        'tie_embeddings': False,
        'vocab_multiple': 8,
    },
    'odd': {
        **{'position': 'alibi', 'num_kv_heads': 1, 'head_dim': 6, 'qk_norm': True},
        **{'attention_softcap': 3.0, 'logit_softcap': 2.0, 'norm_placement': 'post'},
        **{'activation': 'geglu', 'attention': ('causal', 'causal & window(3)')},
    },
    'neox': {
        **{'parallel_residual': True, 'rotary_fraction': 0.5, 'norm_epsilon': 1e-3},
        **{'qkv_bias': True, 'logit_bias': True, 'vocab_size': 20},
        **{'attention_scale': 0.7, 'embed_scale': 1.5, 'logit_scale': 0.5},
    },
    'xl': {
        **{'position': 'transformer_xl', 'num_kv_heads': 2, 'bias': True},
        'attention': ('causal & window(3)', 'causal'),
    },
    'mixtral': {
        **{'experts': 4, 'activation': 'swiglu', 'num_kv_heads': 2, 'tie_embeddings': False},
    },
    'switch': {
        **{'experts': 4, 'experts_per_token': 1, 'router': 'softmax', 'expert_every': 2},
        **{'activation': 'relu', 'bias': True, 'expert_dispatch': 'capacity'},
    },
}
ALONE = {
    **{f'position={kind}': {'position': kind} for kind in POSITIONS},
    **{f'norm={kind}': {'norm': kind} for kind in NORMS},
    **{f'placement={kind}': {'norm_placement': kind} for kind in PLACEMENTS},
    **{f'activation={kind}': {'activation': kind} for kind in ACTIVATIONS},
    'grouped': {'num_kv_heads': 2},
    'shared_experts': {'share_layers': True, 'experts': 3, 'router': 'softmax'},
    'shared': {'share_layers': True, 'position': 'learned', 'position_offset': 2},
    'qk_norm': {'qk_norm': True},
    'attention_softcap': {'attention_softcap': 3.0},
    'yarn': {'rotary_scaling': 'yarn', 'rotary_factor': 2.0, 'rotary_original_length': 64},
}
# What is so in BASE already is one variant, not one for each key.
ALONE = {'plain': {}} | {
    name: changes
    for name, changes in ALONE.items()
    if any(getattr(BASE, key) != value for key, value in changes.items())
}
VARIANTS = TOGETHER | ALONE
variants = pytest.mark.parametrize(
    'name', ['gpt2', *(pytest.param(name, marks=pytest.mark.slow) for name in [*VARIANTS][1:])]
)


def make(seed=0, **changes):
    """Returns a decoder, and parameters large enough for each part to matter."""
    model = Decoder(dataclasses.replace(BASE, **changes), VOCAB, LENGTH)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))['params']
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if path.endswith('scale') else 0.0
        return jnp.asarray(center + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    return model, tree.map_with_path(draw, shapes)


def tokens(batch=2, length=LENGTH, seed=0):
    return np.random.default_rng(seed).integers(VOCAB, size=(batch, length)).astype(np.int32)


# Documents of 5 and 4 tokens and 3 of padding: in one row, and each in a row of its own. No token is 12.
DOCUMENTS = [[0, 7, 3, 9, 1], [4, 0, 11, 3]]
PACKED = {
    'inputs': [[*DOCUMENTS[0], *DOCUMENTS[1]], DOCUMENTS[0], DOCUMENTS[1]],
    'positions': [[*range(5), *range(4)], [*range(5)], [*range(4)]],
    'segment_ids': [[1] * 5 + [2] * 4, [1] * 5, [1] * 4],
}
PACKED = {
    name: np.array([row + [0] * (LENGTH - len(row)) for row in rows], np.int32)
    for name, rows in PACKED.items()
}
PLAIN = {
    'inputs': np.arange(LENGTH, dtype=np.int32) + np.zeros((3, 1), np.int32),
    'positions': np.arange(LENGTH, dtype=np.int32) + np.zeros((3, 1), np.int32),
    'segment_ids': np.ones((3, LENGTH), np.int32),
}


@functools.cache
def compiled(name):
    """Returns a model, parameters, and a jitted function (params, batch, cotangent) -> logits, gradient."""
    model, params = make(**VARIANTS[name])

    def pull(params, batch, cotangent):
        def product(params):
            logits = model.apply({'params': params}, **batch)[..., :VOCAB]
            return jnp.vdot(logits, cotangent), logits

        gradient, logits = jax.grad(product, has_aux=True)(params)
        return logits, gradient

    return model, params, jax.jit(pull)


@pytest.mark.slow
@variants
def test_causality_by_exactly_zero_gradients(name):
    """No logit depends on a later token's embedding.

    Row t of the table is token t, at place t. The logit asked for is that of token 12, which is not in
    the row: so that a tied output matrix has its gradient in a row of its own.
    """
    _, params, pull = compiled(name)
    for t in range(LENGTH):
        cotangent = np.zeros((3, LENGTH, VOCAB), np.float32)
        cotangent[0, t, 12] = 1
        table = np.abs(pull(params, PLAIN, cotangent)[1]['embed']['embedding']).sum(axis=1)
        assert (table[t + 1 : LENGTH] == 0).all()
        assert (table[: t + 1] > 0).all()


@variants
def test_packed_documents_are_as_alone(name):
    """In values and gradients, whatever is in the padding."""
    _, params, pull = compiled(name)
    cotangent = np.zeros((3, LENGTH, VOCAB), np.float32)
    rows = np.random.default_rng(0).normal(size=(9, VOCAB))
    cotangent[0, :9] = rows
    got, got_grads = pull(params, PACKED, cotangent)
    np.testing.assert_allclose(got[0, :5], got[1, :5], atol=1e-5)
    np.testing.assert_allclose(got[0, 5:9], got[2, :4], atol=1e-5)
    assert np.isfinite(got).all()
    cotangent = np.zeros_like(cotangent)
    cotangent[1, :5], cotangent[2, :4] = rows[:5], rows[5:]
    padded = PACKED | {'inputs': np.where(PACKED['segment_ids'] == 0, 6, PACKED['inputs'])}
    want, want_grads = pull(params, padded, cotangent)
    np.testing.assert_array_equal(got[0, :9], want[0, :9])
    for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-3)


@variants
def test_decoding_equals_the_whole(name):
    """Four tokens at a time, in rows that begin with 4, 2 and 3 of them."""
    model, params, pull = compiled(name)
    inputs = np.stack([np.roll(PLAIN['inputs'][0], shift) for shift in range(3)])
    want, _ = pull(params, PLAIN | {'inputs': inputs}, np.zeros((3, LENGTH, VOCAB), np.float32))

    @jax.jit
    def decode(inputs, positions, cache, valid):
        hidden, cache = model.apply(
            {'params': params}, inputs, positions, cache, valid, method='decode'
        )
        return model.apply({'params': params}, hidden, method='logits')[..., :VOCAB], cache

    cache, rows = model.make_cache(3, LENGTH), np.arange(3)[:, None]
    starts, valid = np.zeros(3, np.int32), np.array([4, 2, 3], np.int32)
    while (starts < LENGTH).any():
        places = starts[:, None] + np.arange(4, dtype=np.int32)
        real = (np.arange(4) < valid[:, None]) & (places < LENGTH)
        chunk = np.where(real, inputs[rows, np.minimum(places, LENGTH - 1)], 6)
        got, cache = decode(chunk, places, cache, real)
        for row, t in zip(*np.nonzero(real), strict=True):
            np.testing.assert_allclose(got[row, t], want[row, places[row, t]], atol=1e-5)
        starts, valid = starts + valid, np.array([4, 4, 4], np.int32)


def test_full_attention_sees_all():
    model, params = make(attention=('full',))
    inputs = tokens()
    changed = inputs.copy()
    changed[:, -1] = (changed[:, -1] + 1) % VOCAB
    apply = jax.jit(model.apply)
    first, second = (apply({'params': params}, x) for x in (inputs, changed))
    assert (np.abs(first - second).max(-1) > 1e-6).all()


def test_defaults_are_one_document_a_row():
    model, params = make(position='learned')
    apply = jax.jit(model.apply)
    inputs = tokens(3)
    got = apply({'params': params}, inputs)
    want = apply({'params': params}, **(PLAIN | {'inputs': inputs}))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_full_attention_cannot_decode():
    model, params = make(attention=('causal', 'full'))
    with pytest.raises(InputError, match='cannot generate'):
        model.apply(
            {'params': params}, tokens(), tokens(), model.make_cache(2, LENGTH), method='decode'
        )


@functools.cache
def initialised_and_pulled(attention, scan, remat, **others):
    """Returns initial parameters, and a loss with dropout and its gradient."""
    changes = {'num_layers': 2 * len(attention), 'dropout': 0.2, 'attention': attention} | others
    config = dataclasses.replace(BASE, scan_layers=scan, remat=remat, **changes)
    model, inputs = Decoder(config, VOCAB, LENGTH), tokens()
    params = jax.jit(model.init)(jax.random.key(0), inputs)['params']

    def loss(params):
        rngs = {'dropout': jax.random.key(1)}
        logits = model.apply({'params': params}, inputs, deterministic=False, rngs=rngs)
        return jnp.mean(jnp.sin(30 * logits))

    return params, jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.slow
@pytest.mark.parametrize('attention', [('causal',), ('causal', 'full')])
@pytest.mark.parametrize('remat', REMATS)
@pytest.mark.parametrize('scan', [True, False])
def test_scan_and_remat_change_nothing(scan, remat, attention):
    """Neither initial values, nor losses and gradients, dropout included."""
    want_params, want = initialised_and_pulled(attention, True, 'none')
    params, got = initialised_and_pulled(attention, scan, remat)
    jax.tree.map(np.testing.assert_array_equal, params, want_params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


@pytest.mark.slow
@pytest.mark.parametrize(('scan', 'remat'), [(False, 'none'), (True, 'dots'), (True, 'full')])
def test_scan_and_remat_change_nothing_with_experts(scan, remat):
    changes = {'experts': 4, 'expert_every': 2, 'expert_dispatch': 'capacity'}
    want = initialised_and_pulled(('causal',), True, 'none', **changes)
    got = initialised_and_pulled(('causal',), scan, remat, **changes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def memory(remat, scan=True):
    """Bytes of temporary memory in a gradient of a deep and narrow model."""
    changes = {'num_layers': 8, 'remat': remat, 'scan_layers': scan}
    model = Decoder(dataclasses.replace(BASE, **changes), VOCAB, 128)
    inputs = jnp.zeros((8, 128), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), inputs)

    def loss(params):
        return jnp.mean(model.apply(params, inputs))

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_remat_takes_less_memory():
    none, dots, full = (memory(kind) for kind in ('none', 'dots', 'full'))
    assert full < dots < none
    assert full < none / 2


@pytest.mark.first_quick
@pytest.mark.parametrize('scan', [True, False])
def test_unrolled_layers_are_no_loop(scan):
    model, params = make(scan_layers=scan)
    text = jax.jit(model.apply).lower({'params': params}, tokens()).compile().as_text()
    assert (' while(' in text) == scan


def test_layers_are_stacked_and_covered_by_sharding_rules():
    for changes in TOGETHER.values():
        model, params = make(**changes)
        groups = 2 // len(model.kinds)
        for path, leaf in zip(tree.paths(params), jax.tree.leaves(params), strict=True):
            tree.first_match(mesh.PARAMETER_RULES, path)
            if path.startswith('layers/'):
                assert leaf.shape[0] == groups
    assert 'layers/attention/query/kernel' in tree.paths(make()[1])
    pattern = make(attention=('causal', 'causal'))[1]
    assert pattern['layers']['block_1']['mlp']['up']['kernel'].shape == (1, 16, 24)


@pytest.mark.slow
def test_layers_start_different_and_outputs_small():
    model = Decoder(dataclasses.replace(BASE, num_layers=8, embed_dim=128), VOCAB, LENGTH)
    layers = jax.jit(model.init)(jax.random.key(0), tokens())['params']['layers']
    query, out = layers['attention']['query']['kernel'], layers['attention']['out']['kernel']
    np.testing.assert_allclose(np.std(query), 0.02, rtol=0.02)
    np.testing.assert_allclose(np.std(out), 0.02 / np.sqrt(16), rtol=0.02)
    np.testing.assert_allclose(
        np.std(layers['mlp']['down']['kernel']), 0.02 / np.sqrt(16), rtol=0.05
    )
    assert not np.allclose(query[0], query[1])


@pytest.mark.parametrize(
    ('changes', 'vocab', 'length', 'count'),
    [
        # GPT-2 124M, as published.
        (
            {
                **{'num_layers': 12, 'embed_dim': 768, 'num_heads': 12, 'mlp_dim': 0},
                **{'position': 'learned', 'norm': 'layernorm', 'bias': True},
            },
            50_257,
            1024,
            124_439_808,
        ),
        # Mixtral 8x7B, as published.
        (
            {
                **{'num_layers': 32, 'embed_dim': 4096, 'num_heads': 32, 'num_kv_heads': 8},
                **{
                    'mlp_dim': 14_336,
                    'activation': 'swiglu',
                    'tie_embeddings': False,
                    'experts': 8,
                },
            },
            32_000,
            8192,
            46_702_792_704,
        ),
        # Llama 3.1 8B, as published.
        (
            {
                **{'num_layers': 32, 'embed_dim': 4096, 'num_heads': 32, 'num_kv_heads': 8},
                **{'mlp_dim': 14_336, 'activation': 'swiglu', 'tie_embeddings': False},
            },
            128_256,
            8192,
            8_030_261_248,
        ),
    ],
)
def test_parameter_count(changes, vocab, length, count):
    model = Decoder(dataclasses.replace(BASE, **changes), vocab, length)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    assert tree.size(params) == count


def test_vocabulary_is_padded():
    model, params = make(vocab_multiple=8)
    assert model.padded_vocab_size == 16
    assert params['embed']['embedding'].shape == (16, 16)
    assert model.apply({'params': params}, tokens()).shape == (2, LENGTH, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [{}, {'attention_softcap': 3.0, 'tie_embeddings': False}, {'position': 'transformer_xl'}],
)
def test_bfloat16_computes_near_float32(changes):
    """Through a loss in pieces, with finite float32 gradients."""
    inputs = tokens()

    def run(dtype):
        model, params = make(dtype=dtype, **changes)

        def loss(params):
            hidden = model.apply({'params': params}, inputs, method='hidden')
            assert hidden.dtype == dtype
            total, weight, _ = chunked_cross_entropy(
                lambda h: model.apply({'params': params}, h, method='logits'),
                hidden,
                inputs,
                jnp.ones(inputs.shape),
                chunks=2,
            )
            return total / weight

        return jax.jit(jax.value_and_grad(loss))(params)

    (half, half_grads), (single, _) = run('bfloat16'), run('float32')
    np.testing.assert_allclose(half, single, rtol=0.03)
    for grad in jax.tree.leaves(half_grads):
        assert grad.dtype == jnp.float32
        assert np.isfinite(grad).all()


@pytest.mark.first_quick
@pytest.mark.parametrize('position', ['rotary', 'relative', 'transformer_xl'])
def test_sharded_equals_unsharded(position):
    """On 8 devices, in values and gradients, with a pattern of masks and a padded vocabulary."""
    changes = {'norm': 'layernorm', 'bias': True, 'position': position}
    model, params = make(vocab_multiple=8, num_kv_heads=2, **changes)
    inputs = tokens(4)

    def loss(params, inputs):
        return jnp.mean(jnp.sin(model.apply({'params': params}, inputs)))

    want = jax.jit(jax.value_and_grad(loss))(params, inputs)
    sizes = mesh.sizes(data=1, fsdp=2, tensor=2, sequence=2)
    devices = mesh.make(sizes)
    with jax.set_mesh(devices):
        got = jax.jit(jax.value_and_grad(loss))(
            jax.device_put(params, mesh.parameter_shardings(params, devices)),
            jax.device_put(inputs, mesh.batch_sharding(devices)),
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'attention': ('causal',) * 3}, 'num_layers = 2 cannot be divided by the 3 masks'),
        ({'experts': 4, 'expert_every': 3}, 'num_layers = 2 cannot be divided by 3, after which'),
        ({'attention': ('casual',)}, "Did you mean 'causal'"),
        ({'position': 'rotory'}, "Did you mean 'rotary'"),
        ({'remat': 'ful'}, "Did you mean 'full'"),
        ({'head_dim': 5}, 'head_dim = 5 is odd'),
        (
            {'position': 'transformer_xl', 'embed_dim': 15, 'num_heads': 1},
            'embed_dim = 15 is odd',
        ),
    ],
)
def test_wrong_configs(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_learned_positions_end():
    model, params = make(position='learned')
    with pytest.raises(InputError, match=f'13 tokens in a row are more than the {LENGTH}'):
        model.apply({'params': params}, tokens(length=LENGTH + 1))
