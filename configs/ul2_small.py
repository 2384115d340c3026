"""UL2 (Tay et al. 2023, https://arxiv.org/abs/2205.05131) on web text, at a small size.

    python -m lm.main --config=configs/ul2_small.py --config.data.tfds_dir=/mnt/bucket/tensorflow_datasets

UL2's published checkpoints are of 20 billion parameters. This is the size of T5 1.1 small (8 layers a side,
512 wide; 76,961,152 parameters, as published, which a test holds), with UL2's SwiGLU, its seven denoisers
and rows of 512 tokens a side; batch, steps and schedule are those of `t5_small.py`. The mode tokens of R, S
and X are the last three sentinels. Needs the TFDS data set `c4/en`, prepared as ArrayRecord. Not yet run
here.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'tfds:c4/en#text[train]'
    config.data.valid = 'tfds:c4/en#text[validation]'
    config.data.test = ''
    config.data.source_length = 512
    config.data.length = 512
    config.data.batch_size = 128
    config.tokenizer.vocab_size = 32_000
    config.tokenizer.sentinels = 100
    config.tokenizer.train_bytes = 100_000_000
    config.objective.name = 'ul2'
    config.model.architecture = 'encoder_decoder'
    config.model.num_layers = 8
    config.model.embed_dim = 512
    config.model.num_heads = 6
    config.model.head_dim = 64
    config.model.mlp_dim = 1024
    config.model.activation = 'swiglu'
    config.model.position = 'relative'
    config.model.attention_scale = 1.0
    config.model.tie_embeddings = False
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
