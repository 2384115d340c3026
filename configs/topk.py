"""A small model over 1,024 tokens, each of which sees four blocks of 64: its own and three chosen ones.

    python -m lm.main --config=configs/topk.py

Trains on the text of the quickstart, as many tokens a step. 120 steps: a validation loss of 4.947 nats a
token, 2.182 bits a byte, in 151 s of CPU time (13 minutes on 2 cores that were busy with other work).
What the blocks save grows with `data.length`; with 'causal' it has not been compared yet.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.tokenizer.kind = 'bpe'
    config.data.length = 1024
    config.data.batch_size = 2
    config.data.random_crop = True
    config.model.attention = ('topk(4, 64)',)  # or 'nsa(6, 64, 128)', or 'causal' for all pairs
    config.model.num_layers = 4
    config.model.embed_dim = 192
    config.model.activation = 'swiglu'
    config.model.qk_norm = True
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 6e-3
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 20
    config.schedule.final_scale = 0.0
    config.train.steps = 120
    config.train.eval_every = 120
    config.checkpoint.every = 120
    return config
