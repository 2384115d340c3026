"""XLNet base (Yang et al. 2019, https://arxiv.org/abs/1906.08237) on web text.

    python -m lm.main --config=configs/xlnet_base.py --config.data.tfds_dir=/mnt/bucket/tensorflow_datasets

116,718,336 parameters and a bias on the logits, as published; a test holds the number, and another that
hidden vectors and logits are those of `transformers` with the same weights. The schedule is the paper's for
the large model (table 8, which 512 TPU v3 chips trained; of this size it says that it is BERT base's). Rows
hold documents side by side: there are no second texts, and no memory of the row before. Needs the TFDS data
set `c4/en`, prepared as ArrayRecord. Not yet run here.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'tfds:c4/en#text[train]'
    config.data.valid = 'tfds:c4/en#text[validation]'
    config.data.test = ''
    config.data.length = 512
    config.data.batch_size = 8192
    config.tokenizer.vocab_size = 32_000
    config.tokenizer.train_bytes = 100_000_000
    config.objective.name = 'permutation'
    config.objective.partial = 6
    config.objective.max_span = 5
    config.objective.bidirectional = True
    config.model.architecture = 'encoder'
    config.model.attention = ('full',)
    config.model.num_layers = 12
    config.model.embed_dim = 768
    config.model.num_heads = 12
    config.model.mlp_dim = 3072
    config.model.norm = 'layernorm'
    config.model.norm_placement = 'post'
    config.model.position = 'transformer_xl'
    config.model.token_types = 2
    config.model.bias = True
    config.model.dropout = 0.1
    config.optimizer.learning_rate = 4e-4
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 40_000
    config.schedule.final_scale = 0.0
    config.train.steps = 500_000
    config.train.log_every = 100
    config.train.eval_every = 10_000
    config.eval.batch_size = 512
    config.eval.batches = 100
    config.checkpoint.every = 10_000
    return config
