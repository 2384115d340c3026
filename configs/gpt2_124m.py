"""GPT-2's smallest model (124,439,808 parameters) on web text. For 8 accelerators of 40 GB or a TPU v5e-16.

    python -m lm.main --config=configs/gpt2_124m.py --config.data.tfds_dir=/mnt/bucket/tensorflow_datasets

The architecture is OpenAI's (and 47 rows of padding in the vocabulary), the optimizer GPT-3's as in
nanoGPT: 0.5 M tokens a step, 600,000 steps there; here 20,000, about 10 B tokens, from a fourteenth of C4.
Needs the TFDS data set `c4/en`, prepared as ArrayRecord. Not yet run here: a test holds the parameters.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'tfds:c4/en#text[train[:7%]]'
    config.data.valid = 'tfds:c4/en#text[validation]'
    config.data.test = ''
    config.data.length = 1024
    config.data.batch_size = 480
    config.tokenizer.kind = 'bpe'
    config.tokenizer.vocab_size = 50_257
    config.tokenizer.train_bytes = 100_000_000
    config.model.vocab_multiple = 128  # so that tensor parallelism can divide it
    config.model.num_layers = 12
    config.model.embed_dim = 768
    config.model.num_heads = 12
    config.model.norm = 'layernorm'
    config.model.position = 'learned'
    config.model.bias = True
    config.model.dtype = 'bfloat16'
    config.model.remat = 'dots'
    config.optimizer.learning_rate = 6e-4
    config.schedule.warmup_steps = 700
    config.train.steps = 20_000
    config.train.log_every = 20
    config.train.eval_every = 1000
    config.eval.batches = 100
    config.checkpoint.every = 1000
    return config
