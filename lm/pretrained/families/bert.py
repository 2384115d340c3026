"""BERT (Devlin et al. 2019) and its kin: BigBird, RoBERTa, DistilBERT, ALBERT, ELECTRA."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm.errors import InputError
from lm.pretrained.family import (
    ACTIVATIONS,
    TENSORS,
    Both,
    Family,
    Key,
    Only,
    Tensor,
    always,
    attention,
    ignored,
    linear,
    norm,
    table,
    unsupported,
    vector,
)

_ENCODER = always(
    {
        'model.architecture': 'encoder',
        'model.attention': ('full',),
        'model.position': 'learned',
        'model.norm': 'layernorm',
        'model.norm_placement': 'post',
        'model.embed_norm': True,
        'model.bias': True,
        'objective.name': 'masked',
        'data.packing': False,
    }
)
_SIZES = (
    Key('vocab_size', 'model.vocab_size'),
    Key('hidden_size', 'model.embed_dim'),
    Key('num_hidden_layers', 'model.num_layers'),
    Key('num_attention_heads', 'model.num_heads'),
    Key('intermediate_size', 'model.mlp_dim'),
    Key('hidden_act', 'model.activation', 'gelu', ACTIVATIONS),
    Key('layer_norm_eps', 'model.norm_epsilon', 1e-12),
    Key('type_vocab_size', 'model.token_types', 2),
    Key('hidden_dropout_prob', 'model.dropout', 0.1),
    Only(
        position_embedding_type='absolute',
        is_decoder=False,
        add_cross_attention=False,
        tie_word_embeddings=True,
    ),
    ignored('attention_probs_dropout_prob'),
)


def _pairs(kind: str) -> Both:
    """Whether there is a head for pairs of texts: a model with a pooler has one."""
    return Both(
        (),
        lambda theirs: {
            'objective.pairs': kind if any('pooler.' in name for name in theirs[TENSORS]) else ''
        },
    )


def _layer(theirs: str) -> tuple[Tensor, ...]:
    names = 'self.query self.key self.value output.dense'
    return (
        *attention(f'{theirs}.attention', names, 'layers/attention'),
        *norm(f'{theirs}.attention.output.LayerNorm', 'layers/attention_norm'),
        *linear(f'{theirs}.intermediate.dense', 'layers/mlp/up'),
        *linear(f'{theirs}.output.dense', 'layers/mlp/down'),
        *norm(f'{theirs}.output.LayerNorm', 'layers/mlp_norm'),
    )


def _embeddings(theirs: str) -> tuple[Tensor, ...]:
    return (
        table(f'{theirs}.word_embeddings.weight', 'embed'),
        table(f'{theirs}.position_embeddings.weight', 'position'),
        table(f'{theirs}.token_type_embeddings.weight', 'token_type'),
        *norm(f'{theirs}.LayerNorm', 'embed_norm'),
    )


BERT = Family(
    name='bert',
    classes={'BertForPreTraining': 'head_pair/', 'BertForMaskedLM': 'head_tokens/'},
    config=(
        _ENCODER,
        *_SIZES,
        Key('max_position_embeddings', 'data.length', 512),
        _pairs('next'),
    ),
    prefix='bert.',
    tensors=(
        *_embeddings('bert.embeddings'),
        *_layer('bert.encoder.layer.{n}'),
        *linear('bert.pooler.dense', 'head_pair/pooler'),
        *linear('cls.seq_relationship', 'head_pair/out'),
        *linear('cls.predictions.transform.dense', 'head_tokens/dense'),
        *norm('cls.predictions.transform.LayerNorm', 'head_tokens/norm'),
        vector('cls.predictions.bias', 'head_tokens/output/bias'),
    ),
    tied={
        'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight',
        'cls.predictions.decoder.bias': 'cls.predictions.bias',
    },
    buffers=(r'embeddings\.position_ids$', r'embeddings\.token_type_ids$'),
)


# Full attention, which is what `transformers` computes too for up to (5 + 2 num_random_blocks) block_size
# tokens, 704 of the published ones. Of longer texts its evaluation counts the first block several times.
BIG_BIRD = dataclasses.replace(
    BERT,
    name='big_bird',
    classes={'BigBirdForPreTraining': 'head_pair/', 'BigBirdForMaskedLM': 'head_tokens/'},
    config=(
        *BERT.config,
        Only(use_bias=True, rescale_embeddings=False),
        Both(
            ('attention_type',), lambda theirs: {}, lambda ours: {'attention_type': 'original_full'}
        ),
        ignored('block_size', 'num_random_blocks'),
    ),
    tensors=tuple(
        dataclasses.replace(tensor, theirs=tensor.theirs.replace('pooler.dense', 'pooler'))
        for tensor in BERT.tensors
    ),
)


def _read_places(theirs: Mapping[str, Any]) -> dict[str, Any]:
    # Places are counted from the row after that of the padding.
    first = theirs.get('pad_token_id', 1) + 1
    rows = theirs.get('max_position_embeddings', 514)
    return {'model.position_offset': first, 'data.length': rows - first}


def _write_places(ours: Mapping[str, Any]) -> dict[str, Any]:
    first = ours['model.position_offset']
    return {'max_position_embeddings': ours['data.length'] + first, 'pad_token_id': first - 1}


ROBERTA = dataclasses.replace(
    BERT,
    name='roberta',
    classes={'RobertaForMaskedLM': 'head_tokens/'},
    config=(
        _ENCODER,
        *_SIZES,
        Both(('max_position_embeddings', 'pad_token_id'), _read_places, _write_places),
    ),
    prefix='roberta.',
    tensors=(
        *_embeddings('roberta.embeddings'),
        *_layer('roberta.encoder.layer.{n}'),
        *linear('lm_head.dense', 'head_tokens/dense'),
        *norm('lm_head.layer_norm', 'head_tokens/norm'),
        vector('lm_head.bias', 'head_tokens/output/bias'),
    ),
    tied={
        'lm_head.decoder.weight': 'roberta.embeddings.word_embeddings.weight',
        'lm_head.decoder.bias': 'lm_head.bias',
    },
    buffers=(*BERT.buffers, r'^(roberta\.)?pooler\.'),
)


def _read_electra(theirs: Mapping[str, Any]) -> dict[str, Any]:
    # Without either head it is taken for the discriminator, which is the model that is wanted.
    if not any(name.startswith('generator_') for name in theirs[TENSORS]):
        return {'objective.name': 'replaced', 'objective.generator_size': 0.0}
    if theirs.get('hidden_act', 'gelu') != 'gelu':
        raise unsupported("a generator's hidden_act", theirs['hidden_act'], ('gelu',))
    return {'objective.name': 'masked'}


def _write_electra(ours: Mapping[str, Any]) -> dict[str, Any]:
    # The generator's head has it, whatever `hidden_act` says.
    if ours['objective.name'] == 'masked' and ours['model.activation'] != 'gelu_exact':
        raise InputError(f'config.model.activation = {ours["model.activation"]!r}, not gelu_exact.')
    return {}


_DISTIL = 'distilbert.transformer.layer.{n}'

DISTILBERT = Family(
    name='distilbert',
    classes={'DistilBertForMaskedLM': 'head_tokens/'},
    config=(
        _ENCODER,
        always({'model.norm_epsilon': 1e-12}),
        Key('vocab_size', 'model.vocab_size'),
        Key('max_position_embeddings', 'data.length', 512),
        Key('dim', 'model.embed_dim'),
        Key('n_layers', 'model.num_layers'),
        Key('n_heads', 'model.num_heads'),
        Key('hidden_dim', 'model.mlp_dim'),
        Key('activation', 'model.activation', 'gelu', ACTIVATIONS),
        Key('dropout', 'model.dropout', 0.1),
        Only(tie_word_embeddings=True),
        ignored(
            *('attention_dropout', 'qa_dropout', 'seq_classif_dropout'),
            *('sinusoidal_pos_embds', 'tie_weights_'),
        ),
    ),
    prefix='distilbert.',
    tensors=(
        table('distilbert.embeddings.word_embeddings.weight', 'embed'),
        table('distilbert.embeddings.position_embeddings.weight', 'position'),
        *norm('distilbert.embeddings.LayerNorm', 'embed_norm'),
        *attention(f'{_DISTIL}.attention', 'q_lin k_lin v_lin out_lin', 'layers/attention'),
        *norm(f'{_DISTIL}.sa_layer_norm', 'layers/attention_norm'),
        *linear(f'{_DISTIL}.ffn.lin1', 'layers/mlp/up'),
        *linear(f'{_DISTIL}.ffn.lin2', 'layers/mlp/down'),
        *norm(f'{_DISTIL}.output_layer_norm', 'layers/mlp_norm'),
        *linear('vocab_transform', 'head_tokens/dense'),
        *norm('vocab_layer_norm', 'head_tokens/norm'),
        vector('vocab_projector.bias', 'head_tokens/output/bias'),
    ),
    tied={'vocab_projector.weight': 'distilbert.embeddings.word_embeddings.weight'},
    buffers=BERT.buffers,
)

ELECTRA = Family(
    name='electra',
    classes={'ElectraForPreTraining': 'head_discriminator/', 'ElectraForMaskedLM': 'head_tokens/'},
    config=(
        _ENCODER,
        *_SIZES,
        Key('max_position_embeddings', 'data.length', 512),
        Key('embedding_size', 'model.embedding_dim', 128),
        Both((), _read_electra, _write_electra),
        ignored('summary_activation', 'summary_last_dropout', 'summary_type', 'summary_use_proj'),
    ),
    prefix='electra.',
    tensors=(
        *_embeddings('electra.embeddings'),
        *linear('electra.embeddings_project', 'embed_projection'),
        *_layer('electra.encoder.layer.{n}'),
        *linear('discriminator_predictions.dense', 'head_discriminator/dense'),
        *linear('discriminator_predictions.dense_prediction', 'head_discriminator/out'),
        *linear('generator_predictions.dense', 'head_tokens/dense'),
        *norm('generator_predictions.LayerNorm', 'head_tokens/norm'),
        vector('generator_lm_head.bias', 'head_tokens/output/bias'),
    ),
    tied={'generator_lm_head.weight': 'electra.embeddings.word_embeddings.weight'},
    buffers=BERT.buffers,
)

_SHARED = 'albert.encoder.albert_layer_groups.0.albert_layers.0'

ALBERT = Family(
    name='albert',
    classes={'AlbertForPreTraining': 'head_pair/', 'AlbertForMaskedLM': 'head_tokens/'},
    config=(
        _ENCODER,
        *_SIZES,
        always({'model.share_layers': True}),
        Key('max_position_embeddings', 'data.length', 512),
        Key('embedding_size', 'model.embedding_dim', 128),
        _pairs('order'),
        Only(num_hidden_groups=1, inner_group_num=1),
        ignored('classifier_dropout_prob', 'net_structure_type', 'num_memory_blocks', 'gap_size'),
        ignored('down_scale_factor'),
    ),
    prefix='albert.',
    tensors=(
        *_embeddings('albert.embeddings'),
        *linear('albert.encoder.embedding_hidden_mapping_in', 'embed_projection'),
        *attention(f'{_SHARED}.attention', 'query key value dense', 'layers/attention'),
        *norm(f'{_SHARED}.attention.LayerNorm', 'layers/attention_norm'),
        *linear(f'{_SHARED}.ffn', 'layers/mlp/up'),
        *linear(f'{_SHARED}.ffn_output', 'layers/mlp/down'),
        *norm(f'{_SHARED}.full_layer_layer_norm', 'layers/mlp_norm'),
        *linear('albert.pooler', 'head_pair/pooler'),
        *linear('sop_classifier.classifier', 'head_pair/out'),
        *linear('predictions.dense', 'head_tokens/dense'),
        *norm('predictions.LayerNorm', 'head_tokens/norm'),
        vector('predictions.bias', 'head_tokens/output/bias'),
    ),
    tied={
        'predictions.decoder.weight': 'albert.embeddings.word_embeddings.weight',
        'predictions.decoder.bias': 'predictions.bias',
    },
    buffers=BERT.buffers,
)
