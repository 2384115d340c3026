"""The decoder over all kinds of its parts: causality, packing, decoding, scan and remat."""

import dataclasses

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
from lm.models.decoder import REMATS, Decoder

BASE = dataclasses.replace(
    config.parse(base.get_config()).model, num_layers=2, embed_dim=16, num_heads=4, mlp_dim=24
)
VOCAB, LENGTH = 13, 12

# Each key's kinds in turn, all else as in BASE; then some that are used together.
VARIANTS = {
    **{f'position={kind}': {'position': kind} for kind in POSITIONS},
    **{f'norm={kind}': {'norm': kind, 'bias': True} for kind in NORMS},
    **{f'placement={kind}': {'norm_placement': kind} for kind in PLACEMENTS},
    **{f'activation={kind}': {'activation': kind} for kind in ACTIVATIONS},
    'grouped': {'num_kv_heads': 2},
    'multi_query': {'num_kv_heads': 1, 'head_dim': 6},
    'qk_norm': {'qk_norm': True},
    'softcaps': {'attention_softcap': 3.0, 'logit_softcap': 2.0},
    'untied': {'tie_embeddings': False, 'vocab_multiple': 8},
    'pattern': {'attention': ('causal', 'causal')},
    'gpt2': {'position': 'learned', 'norm': 'layernorm', 'bias': True},
    'alibi_grouped_softcap': {'position': 'alibi', 'num_kv_heads': 2, 'attention_softcap': 3.0},
    'llama': {'activation': 'swiglu', 'num_kv_heads': 2, 'tie_embeddings': False},
    'yarn': {'rotary_scaling': 'yarn', 'rotary_factor': 2.0, 'rotary_original_length': 64},
}
variants = pytest.mark.parametrize('changes', VARIANTS.values(), ids=VARIANTS)


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


def packed():
    """Two documents, of 5 and 4 tokens, and 3 of padding in one row."""
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3], np.int32)
    positions = np.array([[*range(5), *range(4), *range(3)]], np.int32)
    return tokens(1), positions, segments


@variants
def test_causality_by_exactly_zero_gradients(changes):
    """No logit depends on a later token's embedding: the Jacobian's upper triangle is exactly 0."""
    model, params = make(**{**changes, 'tie_embeddings': False})
    inputs = np.arange(LENGTH, dtype=np.int32)[None]  # all different: row t of the table is token t

    def logits(table):
        new = {**params, 'embed': {'embedding': table}}
        return jnp.sum(model.apply({'params': new}, inputs)[0], axis=-1)  # [T]

    jacobian = jax.jit(jax.jacobian(logits))(params['embed']['embedding'])  # [T, V, D]
    matrix = np.abs(jacobian)[:, :LENGTH].sum(-1)
    assert (np.triu(matrix, 1) == 0).all()
    assert (matrix[np.tril_indices(LENGTH)] > 0).all()


def test_full_attention_sees_all():
    model, params = make(attention=('full',))
    inputs = tokens()
    changed = inputs.copy()
    changed[:, -1] = (changed[:, -1] + 1) % VOCAB
    first, second = (model.apply({'params': params}, x) for x in (inputs, changed))
    assert (np.abs(first - second).max(-1) > 1e-6).all()


@variants
def test_packed_documents_are_as_alone(changes):
    """In values, and in gradients with weight 0 on padding."""
    model, params = make(**changes)
    inputs, positions, segments = packed()
    parts = slice(0, 5), slice(5, 9)

    @jax.jit
    def together(params):
        logits = model.apply({'params': params}, inputs, positions, segments)
        return jnp.sum(jnp.sin(logits[:, :9])), logits

    @jax.jit
    def alone(params):
        logits = [model.apply({'params': params}, inputs[:, part]) for part in parts]
        return sum(jnp.sum(jnp.sin(x)) for x in logits), jnp.concatenate(logits, axis=1)

    (_, got), got_grads = jax.value_and_grad(together, has_aux=True)(params)
    (_, want), want_grads = jax.value_and_grad(alone, has_aux=True)(params)
    np.testing.assert_allclose(got[:, :9], want, atol=1e-5)
    assert np.isfinite(got).all()
    for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-3)


@variants
def test_prefill_and_steps_equal_the_whole(changes):
    """Rows of 4 and 7 prompt tokens; what pads the shorter prompt is overwritten before it is seen."""
    model, params = make(**changes)
    inputs, lengths = tokens(), np.array([4, 7])
    want = jax.jit(model.apply)({'params': params}, inputs)

    @jax.jit
    def decode(inputs, positions, cache):
        hidden, cache = model.apply({'params': params}, inputs, positions, cache, method='decode')
        return model.apply({'params': params}, hidden, method='logits'), cache

    prompts = np.where(np.arange(7) < lengths[:, None], inputs[:, :7], 1).astype(np.int32)
    places = np.broadcast_to(np.arange(7, dtype=np.int32), (2, 7))
    got, cache = decode(prompts, places, model.make_cache(2, LENGTH))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(got[row, :length], want[row, :length], atol=1e-5)
    rows = np.arange(2)
    for step in range(5):
        places = (lengths + step)[:, None].astype(np.int32)
        got, cache = decode(inputs[rows[:, None], places], places, cache)
        np.testing.assert_allclose(got[:, 0], want[rows, places[:, 0]], atol=1e-5)


def test_full_attention_cannot_decode():
    model, params = make(attention=('causal', 'full'))
    with pytest.raises(InputError, match='cannot generate'):
        model.apply(
            {'params': params}, tokens(), tokens(), model.make_cache(2, LENGTH), method='decode'
        )


@pytest.mark.parametrize('attention', [('causal',), ('causal', 'full')])
@pytest.mark.parametrize('remat', REMATS)
def test_scan_and_remat_change_nothing(remat, attention):
    """Parameters, initial values, losses and gradients, dropout included."""
    plain = {'num_layers': 4, 'dropout': 0.2, 'attention': attention}
    inputs = tokens()

    def run(**changes):
        model = Decoder(dataclasses.replace(BASE, **plain, **changes), VOCAB, LENGTH)
        params = jax.jit(model.init)(jax.random.key(0), inputs)['params']

        def loss(params):
            rngs = {'dropout': jax.random.key(1)}
            logits = model.apply({'params': params}, inputs, deterministic=False, rngs=rngs)
            return jnp.mean(jnp.sin(30 * logits))

        return params, jax.jit(jax.value_and_grad(loss))(params)

    want_params, want = run(scan_layers=True, remat='none')
    for scan in (True, False):
        params, got = run(scan_layers=scan, remat=remat)
        jax.tree.map(np.testing.assert_array_equal, params, want_params)
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


def test_layers_are_stacked_and_covered_by_sharding_rules():
    for changes in VARIANTS.values():
        model, params = make(**changes)
        groups = 2 // len(model.masks)
        for path, leaf in zip(tree.paths(params), jax.tree.leaves(params), strict=True):
            tree.first_match(mesh.PARAMETER_RULES, path)
            if path.startswith('layers/'):
                assert leaf.shape[0] == groups
    assert 'layers/attention/query/kernel' in tree.paths(make()[1])
    pattern = make(attention=('causal', 'causal'))[1]
    assert pattern['layers']['block_1']['mlp']['up']['kernel'].shape == (1, 16, 24)


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


@pytest.mark.parametrize('changes', [{}, {'attention_softcap': 3.0}, {'tie_embeddings': False}])
def test_bfloat16_computes_near_float32(changes):
    """Through a loss in pieces, with finite float32 gradients."""
    inputs = tokens()

    def run(dtype):
        model, params = make(dtype=dtype, **changes)

        @jax.jit
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

        return jax.value_and_grad(loss)(params)

    (half, half_grads), (single, _) = run('bfloat16'), run('float32')
    np.testing.assert_allclose(half, single, rtol=0.03)
    for grad in jax.tree.leaves(half_grads):
        assert grad.dtype == jnp.float32
        assert np.isfinite(grad).all()


def test_sharded_equals_unsharded():
    """On 8 devices, in values and gradients, with a pattern of masks and a padded vocabulary."""
    model, params = make(vocab_multiple=8, num_kv_heads=2, norm='layernorm', bias=True)
    inputs = tokens(4)

    def loss(params, inputs):
        return jnp.mean(jnp.sin(model.apply({'params': params}, inputs)))

    want = jax.jit(jax.value_and_grad(loss))(params, inputs)
    sizes = config.MeshConfig(data=1, fsdp=2, tensor=2, sequence=2)
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
        ({'attention': ('casual',)}, "Did you mean 'causal'"),
        ({'position': 'rotory'}, "Did you mean 'rotary'"),
        ({'remat': 'ful'}, "Did you mean 'full'"),
        ({'head_dim': 5}, 'head_dim = 5 is odd'),
    ],
)
def test_wrong_configs(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_learned_positions_end():
    model, params = make(position='learned')
    with pytest.raises(InputError, match=f'13 tokens in a row are more than the {LENGTH}'):
        model.apply({'params': params}, tokens(length=LENGTH + 1))
