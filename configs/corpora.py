"""A curriculum of corpora: numbers written out in German, then in French and Chinese too, to English.

    python -m lm.main --config=configs/corpora.py

The corpora are rows of the same batches. All rows are German at the first step; French and Chinese come in
step by step, and at the last all three are equal. The report draws the rates, and says how often each
corpus was seen. Minutes on a laptop; of the 1,500 numbers of the test 1,498 were right (beam 4: 1,499).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = ''
    config.data.corpora = ConfigDict(
        {
            'german': {'source': 'builtin:numerals#de,en[train]'},
            'french': {
                'source': 'builtin:numerals#fr,en[train]',
                'weight': 0.0,
                'final_weight': 1.0,
            },
            'chinese': {
                'source': 'builtin:numerals#zh,en[train]',
                'weight': 0.0,
                'final_weight': 1.0,
            },
        }
    )
    config.data.rates = 'scheduled'
    config.data.valid = ' + '.join(f'builtin:numerals#{x},en[valid]' for x in ('de', 'fr', 'zh'))
    config.data.test = ' + '.join(f'builtin:numerals#{x},en[test]' for x in ('de', 'fr', 'zh'))
    config.data.length = 128
    config.data.batch_size = 16
    config.tokenizer.kind = 'bpe'
    config.tokenizer.vocab_size = 192
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
    config.train.steps = 600
    config.train.eval_every = 200
    config.checkpoint.every = 200
    config.generate.prompts = ('einundzwanzig', 'trois cent dix-sept', '九百零一')
    config.generate.samples = 1
    config.generate.temperature = 0.0
    return config
