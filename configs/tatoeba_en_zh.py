"""Everyday sentences, English to Chinese (pairs of Tatoeba, https://tatoeba.org, CC BY 2.0 FR).

    LM_DATA_DIR=DIR python -m lm.main --config=configs/tatoeba_en_zh.py

Needs DIR/tatoeba_en_zh/{train,valid,test}.tsv (.gz and .xz too), an English sentence, a tab and a Chinese
one a line; https://www.manythings.org/anki has such a file. 19,000 short pairs, in 32 epochs. Not yet run
to its end here.

BLEU counts Chinese characters (sacreBLEU's `zh`), and chrF needs no words at all. Of the 3,267 Chinese
characters, simplified and traditional ones side by side, 2,883 have an id of their own; other ids are
pieces of English and frequent Chinese words. Rarer characters and those of the test go through bytes.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'data:tatoeba_en_zh/train.tsv#0,1'
    config.data.valid = 'data:tatoeba_en_zh/valid.tsv#0,1'
    config.data.test = 'data:tatoeba_en_zh/test.tsv#0,1'
    config.data.length = 128
    config.data.batch_size = 32
    config.tokenizer.kind = 'bpe'
    config.tokenizer.vocab_size = 8000
    config.objective.name = 'seq2seq'
    config.model.architecture = 'encoder_decoder'
    config.model.num_layers = 4
    config.model.embed_dim = 256
    config.model.num_heads = 4
    config.model.mlp_dim = 512
    config.model.qk_norm = True
    config.model.scan_layers = False
    config.model.dropout = 0.3
    config.loss.label_smoothing = 0.1
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 4e-3
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 100
    config.schedule.final_scale = 0.0
    config.train.steps = 1500
    config.train.eval_every = 150
    config.checkpoint.every = 150
    config.eval.bleu_tokenizer = 'zh'
    config.generate.samples = 1
    config.generate.temperature = 0.0
    config.generate.prompts = ('I have to go to sleep.', 'What kind of work will you do?')
    return config
