"""A translation model on a laptop: numbers, written out in German, to English.

    python -m lm.main --config=configs/quickstart_translation.py

`einundzwanzigtausenddrei` becomes `twenty-one thousand and three`: long words come apart, their parts
change places, and no number of the test is in the training text. (The other way round BLEU would be 0: it
counts four words in a row, and German numbers have at most three.) All 500 were right after two minutes on
2 cores of an AMD EPYC. Then open runs/quickstart_translation/report.html.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'builtin:numerals#de,en[train]'
    config.data.valid = 'builtin:numerals#de,en[valid]'
    config.data.test = 'builtin:numerals#de,en[test]'
    config.data.length = 128
    config.data.batch_size = 16
    config.tokenizer.kind = 'bpe'
    config.tokenizer.vocab_size = 128
    config.tokenizer.byte_fallback = False  # There are few characters.
    config.objective.name = 'seq2seq'
    config.model.architecture = 'encoder_decoder'
    config.model.num_layers = 2
    config.model.embed_dim = 128
    config.model.num_heads = 4
    config.model.qk_norm = True
    config.model.scan_layers = False
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 6e-3
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 20
    config.schedule.final_scale = 0.0
    config.train.steps = 400
    config.train.eval_every = 200
    config.checkpoint.every = 200
    config.generate.prompts = ('einundzwanzig', 'dreihundertsiebzehn Millionen zwei')
    config.generate.samples = 1
    config.generate.temperature = 0.0
    return config
