"""A knowledge graph as text: UMLS's semantic network, 5,216 triples of 135 entities and 46 relations.

LM_DATA_DIR=DIR python -m lm.main --config=configs/umls.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'data:umls/train.txt#triples'
    config.data.valid = 'data:umls/valid.txt#triples'
    config.data.test = 'data:umls/test.txt#triples'
    config.data.length = 128
    config.data.batch_size = 32
    config.tokenizer.kind = 'bpe'
    config.tokenizer.vocab_size = 800
    config.tokenizer.byte_fallback = False
    config.model.num_layers = 2
    config.model.embed_dim = 128
    config.model.num_heads = 4
    config.model.qk_norm = True
    config.model.scan_layers = False
    config.model.dropout = 0.2
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 4e-3
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 50
    config.schedule.final_scale = 0.0
    config.train.steps = 600
    config.train.eval_every = 100
    config.checkpoint.every = 0
    config.generate.prompts = ('what is a virus?',)
    config.generate.max_tokens = 16
    return config
