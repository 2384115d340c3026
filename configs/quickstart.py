"""A real language model in about two minutes on a laptop: the documentation of Python itself.

    python -m lm.main --config=configs/quickstart.py

Trains on the prose and docstrings of Python's standard library (2 MB of text that every machine has; its
wording depends on the Python version). Then open runs/quickstart/report.html.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.tokenizer.kind = 'bpe'
    config.tokenizer.vocab_size = 4096
    config.data.length = 128
    config.data.batch_size = 16
    config.data.random_crop = True  # a small text: another cut each epoch
    config.model.num_layers = 4
    config.model.embed_dim = 192
    config.model.num_heads = 4
    config.model.activation = 'swiglu'
    config.model.qk_norm = True
    config.model.scan_layers = False  # four layers compile quickly, and run quicker unrolled
    # With so few steps, Muon ends lower than AdamW does.
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 6e-3
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 20
    config.schedule.final_scale = 0.0
    config.train.log_every = 5
    config.train.steps = 220
    config.train.eval_every = 110
    config.checkpoint.every = 110
    config.generate.prompts = ('Return the', 'The module', 'This function')
    config.generate.temperature = 0.7
    config.generate.top_p = 0.9
    return config
