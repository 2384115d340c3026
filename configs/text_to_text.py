"""One encoder-decoder learns translation, summarisation and sentiment, told apart by prefixes (T5).

    python -m lm.main --config=configs/text_to_text.py

Raffel et al. 2020, https://arxiv.org/abs/1910.10683: each task is a text that becomes another. Needs
in $LM_DATA_DIR `multi30k/train.en`, `train.de` and `val.*`; `scitldr/train.jsonl` and `dev.jsonl` with
`source` and `target`; `sst2/train.tsv` and `dev.tsv` with `sentence` and `label`. After it
`--mode=generate` takes any text that begins with one of the prefixes.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.length = 96
    config.data.source_length = 192
    config.data.batch_size = 32
    config.data.test = ''
    config.tokenizer.vocab_size = 8192
    config.objective.name = 'seq2seq'
    config.tasks = ConfigDict(
        {
            'translate': {
                'data': {
                    'train': 'data:multi30k/train.{en,de}',
                    'valid': 'data:multi30k/val.{en,de}',
                    'prefix': 'translate English to German: ',
                },
            },
            'summarize': {
                'data': {
                    'train': 'data:scitldr/train.jsonl#source,target.0',
                    'valid': 'data:scitldr/dev.jsonl#source,target.0',
                    'prefix': 'summarize: ',
                },
            },
            'sst2': {
                'data': {
                    'train': 'data:sst2/train.tsv#sentence,label',
                    'valid': 'data:sst2/dev.tsv#sentence,label',
                    'prefix': 'sst2 sentence: ',
                },
            },
        }
    )
    config.multitask.rates = 'temperature'
    config.model.architecture = 'encoder_decoder'
    config.model.num_layers = 4
    config.model.embed_dim = 256
    config.model.num_heads = 4
    config.model.position = 'relative'
    config.model.encoder_attention = ('full',)
    config.model.scan_layers = False
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 4e-3
    config.schedule.kind = 'linear'
    config.schedule.final_scale = 0.0
    config.train.steps = 2000
    config.train.eval_every = 500
    config.checkpoint.every = 500
    config.eval.batches = 20
    config.generate.prompts = ('translate English to German: Two dogs are playing in the snow.',)
    config.generate.temperature = 0.0
    config.generate.samples = 1
    return config
