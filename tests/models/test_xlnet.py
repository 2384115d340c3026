"""XLNet is XLNet: hidden vectors and logits are those of `transformers` with the same weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, tree
from lm.models import Decoder, example
from lm.models.encoder import Encoder
from lm.models.heads import Head

pytestmark = pytest.mark.slow  # Theirs takes seconds to import.

LAYERS, WIDTH, HEADS, HIDDEN, VOCAB, LENGTH = 2, 16, 4, 24, 13, 9
MODEL = dataclasses.replace(
    config.parse(base.get_config()).model,
    **{'num_layers': LAYERS, 'embed_dim': WIDTH, 'num_heads': HEADS, 'mlp_dim': HIDDEN},
    **{'position': 'transformer_xl', 'norm': 'layernorm', 'norm_placement': 'post', 'bias': True},
    token_types=2,
)


@functools.cache
def libraries():
    """Returns PyTorch and `transformers`."""
    return pytest.importorskip('torch'), pytest.importorskip('transformers')


@functools.cache
def theirs(kind):
    """Returns a model of `transformers`, of parameters large enough for each part to matter."""
    torch, transformers = libraries()
    found = transformers.XLNetConfig(
        **{'vocab_size': VOCAB, 'd_model': WIDTH, 'n_layer': LAYERS, 'n_head': HEADS},
        **{'d_inner': HIDDEN, 'layer_norm_eps': 1e-5, 'dropout': 0.0},
        ff_activation='gelu_new',  # as in XLNet's own code
        attn_type=kind,
    )
    model = transformers.XLNetLMHeadModel(found).eval()
    random = np.random.default_rng(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            center = 1.0 if name.endswith('layer_norm.weight') else 0.0
            weight.copy_(torch.tensor(center + 0.3 * random.normal(size=weight.shape)))
    return model


# Theirs, of a layer -> ours, and what is to be done with it.
KEPT, TURNED = (lambda x: x), (lambda x: x.T)
LAYER = {
    'rel_attn.q': ('attention/query/kernel', KEPT),
    'rel_attn.k': ('attention/key/kernel', KEPT),
    'rel_attn.v': ('attention/value/kernel', KEPT),
    'rel_attn.r': ('attention/relative/kernel', KEPT),
    'rel_attn.o': ('attention/out/kernel', lambda x: np.moveaxis(x, 0, 2)),  # [D, H, K]
    'rel_attn.r_w_bias': ('attention/relative/content_bias', KEPT),
    'rel_attn.r_r_bias': ('attention/relative/distance_bias', KEPT),
    'rel_attn.r_s_bias': ('attention/relative/type_bias', KEPT),
    'rel_attn.seg_embed': ('attention/relative/type_embedding', KEPT),
    'rel_attn.layer_norm.weight': ('attention_norm/scale', KEPT),
    'rel_attn.layer_norm.bias': ('attention_norm/bias', KEPT),
    'ff.layer_1.weight': ('mlp/up/kernel', TURNED),
    'ff.layer_1.bias': ('mlp/up/bias', KEPT),
    'ff.layer_2.weight': ('mlp/down/kernel', TURNED),
    'ff.layer_2.bias': ('mlp/down/bias', KEPT),
    'ff.layer_norm.weight': ('mlp_norm/scale', KEPT),
    'ff.layer_norm.bias': ('mlp_norm/bias', KEPT),
}


def ours(theirs, model):
    """Returns the weights of theirs as parameters of a model of ours."""
    weights = {name: x.detach().numpy() for name, x in theirs.named_parameters()}
    assert len(weights) == 3 + LAYERS * len(LAYER)
    found = {
        'embed/embedding': weights['transformer.word_embedding.weight'],
        'query_stream': weights['transformer.mask_emb'][0, 0],
        'head_tokens/bias': weights['lm_loss.bias'],
    }
    for name, (path, change) in LAYER.items():
        layers = [change(weights[f'transformer.layer.{i}.{name}']) for i in range(LAYERS)]
        found[f'layers/{path}'] = np.stack(layers)

    def one(path, leaf):
        assert found[path].shape == leaf.shape, path
        return jnp.asarray(found[path])

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **example(model)))['params']
    return tree.map_with_path(one, shapes)


RANDOM = np.random.default_rng(1)
INPUTS = RANDOM.integers(VOCAB, size=(3, LENGTH)).astype(np.int32)
TYPES = np.sort(RANDOM.integers(2, size=(3, LENGTH)), axis=1).astype(np.int32)
THERE = (np.arange(LENGTH) < np.array([[LENGTH], [5], [7]])).astype(np.int32)


def run_theirs(model, **facts):
    torch, _ = libraries()
    with torch.no_grad():
        found = model(**{name: torch.tensor(fact) for name, fact in facts.items()})
    return found[0].numpy()


def run_ours(model, params, method, **facts):
    run = jax.jit(lambda params, facts: model.apply({'params': params}, **facts, method=method))
    return run(params, facts)


@pytest.mark.parametrize('types', [False, True], ids=['one text', 'two texts'])
@pytest.mark.parametrize('kind', ['bi', 'uni'])
def test_hidden_vectors(kind, types):
    """Of an encoder with padding, and of a decoder."""
    changed = dataclasses.replace(MODEL, attention=('full' if kind == 'bi' else 'causal',))
    model = (Encoder if kind == 'bi' else Decoder)(changed, VOCAB, LENGTH)
    params = ours(theirs(kind), model)
    there = THERE if kind == 'bi' else np.ones_like(THERE)
    facts = {'attention_mask': there.astype(np.float32)} if kind == 'bi' else {}
    facts |= {'token_type_ids': TYPES.astype(np.int64)} if types else {}
    want = run_theirs(theirs(kind).transformer, input_ids=INPUTS, **facts)
    facts = {'token_types': TYPES} if types else {}
    found = run_ours(model, params, 'hidden', inputs=INPUTS, segment_ids=there, **facts)
    assert np.ptp(want) > 1
    np.testing.assert_allclose(found[there > 0], want[there > 0], atol=1e-5)


def test_logits_of_two_streams():
    """Of all ranks above 0, each from what is of a lower one."""
    order = np.stack([RANDOM.permutation(LENGTH) - 3 for _ in INPUTS]).clip(0).astype(np.int32)
    seen_from = np.maximum(order, 1)[:, :, None]  # What is of rank 0 sees its like.
    want = run_theirs(
        theirs('bi'),
        input_ids=INPUTS,
        perm_mask=(order[:, None] >= seen_from).astype(np.float32),
        target_mapping=np.tile(np.eye(LENGTH, dtype=np.float32), (3, 1, 1)),
        token_type_ids=TYPES.astype(np.int64),
    )
    model = Encoder(MODEL, VOCAB, LENGTH, streams=True, heads=(('tokens', Head('output')),))
    params = ours(theirs('bi'), model)
    found = run_ours(model, params, None, inputs=INPUTS, order=order, token_types=TYPES)['tokens']
    assert np.ptp(want) > 1
    np.testing.assert_allclose(found[order > 0], want[order > 0], atol=1e-5)


def test_the_published_size_is_theirs():
    torch, transformers = libraries()
    sizes = {'vocab_size': 32_000, 'd_model': 768, 'n_layer': 12, 'n_head': 12, 'd_inner': 3072}
    with torch.device('meta'):
        model = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**sizes))
    assert sum(weight.numel() for weight in model.transformer.parameters()) == 116_718_336
    assert sum(weight.numel() for weight in model.parameters()) == 116_718_336 + 32_000
