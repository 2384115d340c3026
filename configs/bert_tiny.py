"""A masked language model on a laptop: the documentation of Python itself.

    python -m lm.main --config=configs/bert_tiny.py

The size of BERT tiny (Turc et al. 2019, https://arxiv.org/abs/1908.08962: 2 layers, 128 wide) with today's
norms and positions.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.tokenizer.kind = 'bpe'
    config.tokenizer.vocab_size = 4096
    config.tokenizer.mask = True
    config.objective.name = 'masked'
    config.data.length = 128
    config.data.batch_size = 32
    config.model.architecture = 'encoder'
    config.model.attention = ('full',)
    config.model.num_layers = 2
    config.model.embed_dim = 128
    config.model.num_heads = 2
    config.model.qk_norm = True
    config.model.bias = True
    config.model.scan_layers = False
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 6e-3
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 20
    config.schedule.final_scale = 0.0
    config.train.steps = 400
    config.train.eval_every = 200
    config.checkpoint.every = 200
    return config
