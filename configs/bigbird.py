"""A decoder with BigBird's mask: a window, global tokens and random blocks.

    python -m lm.main --config=configs/bigbird.py

Zaheer et al. 2020 (https://arxiv.org/abs/2007.14062), causal here. Each layer draws other random blocks.
All else is as in `configs/gpt3.py`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.tokenizer.kind = 'bytes'
    config.data.length = 1024
    config.data.batch_size = 8
    config.data.random_crop = True
    config.data.packing = False  # global tokens are the first of a row
    config.model.attention = tuple(
        f'causal & bigbird(width=256, count=64, blocks=2, seed={layer})' for layer in range(4)
    )
    config.model.num_layers = 4
    config.model.embed_dim = 128
    config.model.activation = 'swiglu'
    config.model.qk_norm = True
    config.optimizer.learning_rate = 2e-3
    config.train.steps = 400
    config.train.eval_every = 200
    config.checkpoint.every = 200
    return config
