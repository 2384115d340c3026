"""ELECTRA small (Clark et al. 2020, https://arxiv.org/abs/2003.10555) on web text. For one accelerator.

    python -m lm.main --config=configs/electra_small.py --config.data.tfds_dir=/mnt/tensorflow_datasets

A discriminator of 13,549,057 parameters, as published (a test holds the number), and a generator of a
quarter of its width. Here the two share the embedding of tokens; in the paper that of positions too. Needs
the TFDS data set `c4/en`, prepared as ArrayRecord. Not yet run here.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'tfds:c4/en#text[train[:7%]]'
    config.data.valid = 'tfds:c4/en#text[validation]'
    config.data.test = ''
    config.data.length = 512
    config.data.batch_size = 32  # 128 rows of 128 tokens in the paper
    config.data.packing = False
    config.tokenizer.vocab_size = 30_521  # and the mask
    config.tokenizer.mask = True
    config.tokenizer.train_bytes = 100_000_000
    config.objective.name = 'replaced'
    config.model.architecture = 'encoder'
    config.model.attention = ('full',)
    config.model.num_layers = 12
    config.model.embed_dim = 256
    config.model.embedding_dim = 128
    config.model.num_heads = 4
    config.model.mlp_dim = 1024
    config.model.norm = 'layernorm'
    config.model.norm_placement = 'post'
    config.model.embed_norm = True
    config.model.token_types = 2
    config.model.position = 'learned'
    config.model.bias = True
    config.model.dropout = 0.1
    config.optimizer.learning_rate = 5e-4
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 10_000
    config.schedule.final_scale = 0.0
    config.train.steps = 1_000_000
    config.train.log_every = 100
    config.train.eval_every = 10_000
    config.eval.batches = 100
    config.checkpoint.every = 10_000
    return config
