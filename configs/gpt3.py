"""GPT-3's alternation of dense and locally banded layers, on bytes of Python's documentation.

    python -m lm.main --config=configs/gpt3.py

Brown et al. 2020 (https://arxiv.org/abs/2005.14165, section 2.1): layers that see everything and layers
that see the last 256 tokens, in turn. For a laptop; see `experiments/attention` for what the kinds cost.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.tokenizer.kind = 'bytes'
    config.data.length = 1024
    config.data.batch_size = 8
    config.data.random_crop = True
    config.model.attention = ('gpt3(256)',)
    config.model.num_layers = 4
    config.model.embed_dim = 128
    config.model.activation = 'swiglu'
    config.model.qk_norm = True
    config.optimizer.learning_rate = 2e-3
    config.train.steps = 400
    config.train.eval_every = 200
    config.checkpoint.every = 200
    return config
