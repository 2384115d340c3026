"""XLNet (Yang et al. 2019, https://arxiv.org/abs/1906.08237)."""

from lm.pretrained.family import (
    ACTIVATIONS,
    Both,
    Family,
    Key,
    Only,
    Tensor,
    always,
    ignored,
    linear,
    norm,
    table,
    vector,
)

_LAYER = 'transformer.layer.{n}'
_ATTENTION, _OURS = f'{_LAYER}.rel_attn', 'layers/attention'

XLNET = Family(
    name='xlnet',
    classes={'XLNetLMHeadModel': 'head_tokens/'},
    config=(
        always(
            {
                'model.architecture': 'encoder',
                'model.attention': ('full',),
                'model.position': 'transformer_xl',
                'model.token_types': 2,
                'model.norm': 'layernorm',
                'model.norm_placement': 'post',
                'model.bias': True,
                'objective.name': 'permutation',
                'data.length': 512,
                'data.packing': False,
            }
        ),
        Key('vocab_size', 'model.vocab_size'),
        Key('d_model', 'model.embed_dim'),
        Key('n_layer', 'model.num_layers'),
        Key('n_head', 'model.num_heads'),
        Key('d_inner', 'model.mlp_dim'),
        Key('ff_activation', 'model.activation', 'gelu', ACTIVATIONS),
        Key('layer_norm_eps', 'model.norm_epsilon', 1e-12),
        Key('dropout', 'model.dropout', 0.1),
        Only(
            **{'attn_type': 'bi', 'bi_data': False, 'clamp_len': -1, 'same_length': False},
            tie_word_embeddings=True,
            untie_r=True,
        ),
        Both(('d_head',), write=lambda ours: {'d_head': ours['model.head_dim']}),
        # Memories of earlier segments, which are not kept here, are none in a first one.
        ignored('mem_len', 'reuse_len', 'use_mems', 'use_mems_eval', 'use_mems_train'),
        ignored('summary_activation', 'summary_last_dropout', 'summary_type', 'summary_use_proj'),
        ignored('start_n_top', 'end_n_top'),
    ),
    prefix='transformer.',
    tensors=(
        table('transformer.word_embedding.weight', 'embed'),
        Tensor('transformer.mask_emb', 'query_stream', '1 1 D -> D'),
        *(
            Tensor(f'{_ATTENTION}.{theirs}', f'{_OURS}/{ours}/kernel', 'D H K -> D H K')
            for theirs, ours in zip('qkvr', ('query', 'key', 'value', 'relative'), strict=True)
        ),
        Tensor(f'{_ATTENTION}.o', f'{_OURS}/out/kernel', 'D H K -> H K D'),
        *(
            Tensor(f'{_ATTENTION}.r_{letter}_bias', f'{_OURS}/relative/{ours}_bias', 'H K -> H K')
            for letter, ours in zip('wrs', ('content', 'distance', 'type'), strict=True)
        ),
        Tensor(f'{_ATTENTION}.seg_embed', f'{_OURS}/relative/type_embedding', 'N H K -> N H K'),
        *norm(f'{_ATTENTION}.layer_norm', 'layers/attention_norm'),
        *linear(f'{_LAYER}.ff.layer_1', 'layers/mlp/up'),
        *linear(f'{_LAYER}.ff.layer_2', 'layers/mlp/down'),
        *norm(f'{_LAYER}.ff.layer_norm', 'layers/mlp_norm'),
        vector('lm_loss.bias', 'head_tokens/bias'),
    ),
    tied={'lm_loss.weight': 'transformer.word_embedding.weight'},
)
