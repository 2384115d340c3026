"""A BigBird encoder (Zaheer et al. 2020, https://arxiv.org/abs/2007.14062) for rows of 4,096 tokens.

    python -m lm.main --config=configs/bigbird_encoder.py --config.data.tfds_dir=/mnt/tensorflow_datasets

BERT's sizes, RoBERTa's objective, and the paper's attention: a window of three blocks of 64, two global
blocks, three random ones. For 16 accelerators of 16 GB. Needs the TFDS data set `c4/en`, prepared as
ArrayRecord. Not yet run here.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'tfds:c4/en#text[train[:7%]]'
    config.data.valid = 'tfds:c4/en#text[validation]'
    config.data.test = ''
    config.data.length = 4096
    config.data.batch_size = 256
    config.data.packing = False  # Global tokens are the first of a row.
    config.tokenizer.vocab_size = 32_000
    config.tokenizer.mask = True
    config.tokenizer.train_bytes = 100_000_000
    config.objective.name = 'masked'
    config.objective.max_predictions = 640
    config.model.architecture = 'encoder'
    config.model.attention = tuple(f'bigbird(192, 128, 3, {seed})' for seed in range(12))
    config.model.num_layers = 12
    config.model.embed_dim = 768
    config.model.num_heads = 12
    config.model.norm = 'layernorm'
    config.model.norm_placement = 'post'
    config.model.embed_norm = True
    config.model.position = 'learned'
    config.model.bias = True
    config.model.dropout = 0.1
    config.model.remat = 'dots'
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 10_000
    config.train.steps = 500_000
    config.train.log_every = 100
    config.train.eval_every = 10_000
    config.eval.batches = 100
    config.checkpoint.every = 10_000
    return config
