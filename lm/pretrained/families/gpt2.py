"""GPT-2 (Radford et al. 2019), and what has its form: DistilGPT-2, DialoGPT, Cerebras-GPT with gelu."""

from lm.pretrained.family import (
    ACTIVATIONS,
    Family,
    Key,
    Only,
    Tensor,
    always,
    fused,
    ignored,
    norm,
    table,
    vector,
)

_LAYER = 'transformer.h.{n}.'

GPT2 = Family(
    name='gpt2',
    classes={'GPT2LMHeadModel': ''},
    config=(
        always(
            {
                'model.architecture': 'decoder',
                'model.position': 'learned',
                'model.norm': 'layernorm',
                'model.bias': True,
            }
        ),
        Key('vocab_size', 'model.vocab_size'),
        Key('n_positions', 'data.length'),
        Key('n_embd', 'model.embed_dim'),
        Key('n_layer', 'model.num_layers'),
        Key('n_head', 'model.num_heads'),
        Key('n_inner', 'model.mlp_dim', None, otherwise=0),
        Key('layer_norm_epsilon', 'model.norm_epsilon', 1e-5),
        Key('activation_function', 'model.activation', 'gelu_new', ACTIVATIONS),
        Key('resid_pdrop', 'model.dropout', 0.1),
        Key('tie_word_embeddings', 'model.tie_embeddings', True),
        Only(
            scale_attn_weights=True,
            scale_attn_by_inverse_layer_idx=False,
            add_cross_attention=False,
        ),
        ignored(
            *('attn_pdrop', 'embd_pdrop', 'reorder_and_upcast_attn', 'n_ctx'),
            *('summary_activation', 'summary_first_dropout', 'summary_proj_to_labels'),
            *('summary_type', 'summary_use_proj'),
        ),
    ),
    prefix='transformer.',
    tensors=(
        table('transformer.wte.weight', 'embed'),
        table('transformer.wpe.weight', 'position'),
        *norm(f'{_LAYER}ln_1', 'layers/attention_norm'),
        *fused(
            f'{_LAYER}attn.c_attn',
            'layers/attention',
            'D (three H K) -> three D H K',
            '(three H K) -> three H K',
        ),
        Tensor(f'{_LAYER}attn.c_proj.weight', 'layers/attention/out/kernel', '(H K) D -> H K D'),
        vector(f'{_LAYER}attn.c_proj.bias', 'layers/attention/out/bias'),
        *norm(f'{_LAYER}ln_2', 'layers/mlp_norm'),
        Tensor(f'{_LAYER}mlp.c_fc.weight', 'layers/mlp/up/kernel', 'D F -> D F'),
        vector(f'{_LAYER}mlp.c_fc.bias', 'layers/mlp/up/bias'),
        Tensor(f'{_LAYER}mlp.c_proj.weight', 'layers/mlp/down/kernel', 'F D -> F D'),
        vector(f'{_LAYER}mlp.c_proj.bias', 'layers/mlp/down/bias'),
        *norm('transformer.ln_f', 'final_norm'),
        Tensor('lm_head.weight', 'head/kernel', 'V D -> D V'),
    ),
    tied={'lm_head.weight': 'transformer.wte.weight'},
    buffers=(r'h\.\d+\.attn\.(masked_)?bias$',),
)
