"""One Billion Word Benchmark, in the size of Flax's lm1b example. For 8 accelerators.

    python -m lm.main --config=configs/lm1b.py --config.data.tfds_dir=/mnt/bucket/tensorflow_datasets

Needs the TFDS data set `lm1b`, prepared as ArrayRecord (see the README). Not yet run at full length here:
tests run it with a small data set of the same name and features.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'tfds:lm1b#text[train]'
    config.data.valid = 'tfds:lm1b#text[test]'  # the data set has no validation split
    config.data.test = ''
    config.data.length = 128
    config.data.batch_size = 256
    config.tokenizer.vocab_size = 30_000
    config.model.num_layers = 6
    config.model.embed_dim = 512
    config.model.num_heads = 8
    config.model.mlp_dim = 2048
    config.model.dropout = 0.1
    config.model.dtype = 'bfloat16'
    config.optimizer.learning_rate = 1.6e-3
    config.schedule.kind = 'inverse_sqrt'
    config.schedule.warmup_steps = 1000
    config.train.steps = 500_000
    config.train.log_every = 100
    config.train.eval_every = 5000
    config.eval.batches = 100
    config.checkpoint.every = 5000
    return config
