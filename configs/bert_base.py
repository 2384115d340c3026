"""BERT base (Devlin et al. 2018, https://arxiv.org/abs/1810.04805) on web text.

For 16 accelerators of 16 GB:

    python -m lm.main --config=configs/bert_base.py --config.data.tfds_dir=/mnt/bucket/tensorflow_datasets

109,482,240 parameters and the heads of masked tokens and next sentences, as published; a test holds the
number. The paper trains 900,000 steps on rows of 128 tokens, then 100,000 of 512: begin with
`--config.data.length=128`. Needs the TFDS data set `c4/en`, prepared as ArrayRecord. Not yet run here.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'tfds:c4/en#text[train[:7%]]'
    config.data.valid = 'tfds:c4/en#text[validation]'
    config.data.test = ''
    config.data.length = 512
    config.data.batch_size = 256
    config.data.packing = False
    config.tokenizer.vocab_size = 30_521  # and the mask
    config.tokenizer.mask = True
    config.tokenizer.train_bytes = 100_000_000
    config.objective.name = 'masked'
    config.objective.unit = 'word'
    config.objective.pairs = 'next'
    config.objective.max_predictions = 76
    config.model.architecture = 'encoder'
    config.model.attention = ('full',)
    config.model.num_layers = 12
    config.model.embed_dim = 768
    config.model.num_heads = 12
    config.model.norm = 'layernorm'
    config.model.norm_placement = 'post'
    config.model.embed_norm = True
    config.model.token_types = 2
    config.model.position = 'learned'
    config.model.bias = True
    config.model.dropout = 0.1
    config.optimizer.learning_rate = 1e-4
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
