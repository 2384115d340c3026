"""One encoder, four things to learn: masked tokens, next sentences, entailment and similarity.

    python -m lm.main --config=configs/multitask.py

Needs in $LM_DATA_DIR `warandpeace/input.txt`, any text with blank lines between paragraphs;
`rte/rte1_dev.tsv.gz` and its kin, with columns `text`, `hypothesis`, `entailment` (0 or 1); and in
`stsb/en_train.csv` and `en_dev.csv` two sentences and a score from 0 to 5. What the ways
to share the steps come to is in experiments/multitask/README.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'data:warandpeace/input.txt[:95%]'
    config.data.valid = 'data:warandpeace/input.txt[95%:]'
    config.data.test = ''
    config.data.document = 'paragraph'
    config.data.length = 128
    config.data.batch_size = 32
    config.data.packing = False
    config.tokenizer.vocab_size = 4096
    config.tokenizer.mask = True
    config.objective.name = 'masked'
    config.objective.pairs = 'next'
    config.tasks = ConfigDict(
        {
            'text': {'weight': 2.0},
            'rte': {
                'data': {
                    'train': 'data:rte/rte?_dev.tsv.gz#text,hypothesis=entailment',
                    'valid': 'data:rte/rte3_test.tsv#text,hypothesis=entailment',
                },
                'objective': {'name': 'classification'},
            },
            'stsb': {
                'data': {
                    'train': 'data:stsb/en_train.csv#0,1=2',
                    'valid': 'data:stsb/en_dev.csv#0,1=2',
                },
                'objective': {'name': 'similarity'},
            },
        }
    )
    config.model.architecture = 'encoder'
    config.model.attention = ('full',)
    config.model.token_types = 2
    config.model.num_layers = 2
    config.model.embed_dim = 128
    config.model.num_heads = 2
    config.model.qk_norm = True
    config.model.bias = True
    config.model.dropout = 0.1
    config.model.scan_layers = False
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 6e-3
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 50
    config.schedule.final_scale = 0.0
    config.train.steps = 600
    config.train.eval_every = 150
    config.checkpoint.every = 150
    return config
