"""T5 small (Raffel et al. 2020, https://arxiv.org/abs/1910.10683) on web text. For 8 accelerators of 16 GB.

    python -m lm.main --config=configs/t5_small.py --config.data.tfds_dir=/mnt/bucket/tensorflow_datasets

60,506,624 parameters, as published; a test holds the number. Batches of 65,536 tokens of source,
524,288 steps, Adafactor with 1 / sqrt(step). Needs the TFDS data set `c4/en`, prepared as ArrayRecord.
Not yet run here.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'tfds:c4/en#text[train]'
    config.data.valid = 'tfds:c4/en#text[validation]'
    config.data.test = ''
    config.data.source_length = 512
    config.data.length = 128
    config.data.batch_size = 128
    config.tokenizer.vocab_size = 32_000
    config.tokenizer.sentinels = 100
    config.tokenizer.train_bytes = 100_000_000
    config.objective.name = 'span_corruption'
    config.model.architecture = 'encoder_decoder'
    config.model.num_layers = 6
    config.model.embed_dim = 512
    config.model.num_heads = 8
    config.model.mlp_dim = 2048
    config.model.activation = 'relu'
    config.model.position = 'relative'
    config.model.attention_scale = 1.0
    config.model.vocab_multiple = 128
    config.model.dropout = 0.0  # in pre-training
    config.optimizer.name = 'adafactor'
    config.optimizer.learning_rate = 1e-2
    config.optimizer.weight_decay = 0.0
    config.schedule.kind = 'inverse_sqrt'
    config.schedule.warmup_steps = 10_000
    config.train.steps = 524_288
    config.train.log_every = 100
    config.train.eval_every = 10_000
    config.eval.batches = 100
    config.checkpoint.every = 10_000
    return config
