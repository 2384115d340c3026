"""Gated DeltaNet and windows: three layers with a state of one size, then one that sees 256 tokens.

    python -m lm.main --config=configs/gated_delta.py

Trains on the documentation of Python itself, in rows of 1,024 tokens, on any machine. What a layer sees of
the past is a state or a window, so that time and memory grow with the length of a row and not with its
square, and generation needs as much memory for the last token as for the first. Not yet run to the end
here: four steps of shorter rows were, with samples and a report.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.tokenizer.kind = 'bpe'
    config.data.length = 1024
    config.data.batch_size = 4
    config.data.random_crop = True
    config.model.num_layers = 4
    config.model.embed_dim = 192
    config.model.num_heads = 3
    config.model.activation = 'swiglu'
    config.model.attention = ('gated_delta',) * 3 + ('causal & window(256)',)
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 6e-3
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 20
    config.schedule.final_scale = 0.0
    config.train.steps = 220
    config.train.eval_every = 110
    config.checkpoint.every = 110
    return config
