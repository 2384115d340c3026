"""The Brown corpus: word perplexity on the usual split (800k words, 200k words, the rest).

    python -m lm.main --config=configs/brown.py

Needs `brown.txt` (one sentence a line, tokens separated by spaces) in $LM_DATA_DIR/brown. Numbers, and a
Kneser-Ney 5-gram beside them, are in experiments/brown/README.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'data:brown/brown.txt[:800000w]'
    config.data.valid = 'data:brown/brown.txt[800000w:1000000w]'
    config.data.test = 'data:brown/brown.txt[1000000w:]'
    config.data.length = 128
    config.data.batch_size = 16
    config.data.random_crop = True
    config.tokenizer.vocab_size = 8192
    config.model.num_layers = 4
    config.model.embed_dim = 192
    config.model.num_heads = 4
    config.model.activation = 'swiglu'
    config.model.qk_norm = True
    config.model.dropout = 0.1  # three epochs of a small text
    config.model.scan_layers = False
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 5e-3
    config.schedule.kind = 'linear'
    config.schedule.final_scale = 0.0
    config.train.steps = 1500
    config.train.eval_every = 250
    config.checkpoint.every = 250
    config.eval.stride = 64
    config.generate.prompts = ('The',)
    return config
