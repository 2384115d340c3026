"""The Sparse Transformer's strided pattern: the last 64 tokens, and every 64th before them.

    python -m lm.main --config=configs/sparse_transformer.py

Child et al. 2019 (https://arxiv.org/abs/1904.10509), half of the heads each, as their section 5.2 has it.
`sparse_transformer_fixed(64, 8)` is their pattern for text; its chunks lie in the row, so that it needs
`--config.data.packing=False`. All else is as in `configs/gpt3.py`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.tokenizer.kind = 'bytes'
    config.data.length = 1024
    config.data.batch_size = 8
    config.data.random_crop = True
    config.model.attention = ('heads(causal & window(64), causal & strided(64))',)
    config.model.num_layers = 4
    config.model.embed_dim = 128
    config.model.activation = 'swiglu'
    config.model.qk_norm = True
    config.optimizer.learning_rate = 2e-3
    config.train.steps = 400
    config.train.eval_every = 200
    config.checkpoint.every = 200
    return config
