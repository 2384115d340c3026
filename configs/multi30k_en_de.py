"""Image captions, English to German (Multi30k task 1, https://github.com/multi30k/dataset), text only.

    LM_DATA_DIR=DIR python -m lm.main --config=configs/multi30k_en_de.py

29,000 pairs. BLEU 40.2 with 4 beams, 40.7 for the mean of the last five checkpoints, after an hour on
2 cores of an AMD EPYC: experiments/multi30k/README.md. About the size of the text-only Transformer of Wu et
al. 2021 (https://arxiv.org/abs/2105.14462).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'data:multi30k/train.{en,de}'
    config.data.valid = 'data:multi30k/val.{en,de}'
    config.data.test = 'data:multi30k/test_2016_flickr.{en,de}'
    config.data.length = 128
    config.data.batch_size = 32
    config.tokenizer.kind = 'bpe'
    config.tokenizer.vocab_size = 6000
    config.tokenizer.byte_fallback = False
    config.objective.name = 'seq2seq'
    config.model.architecture = 'encoder_decoder'
    config.model.num_layers = 4
    config.model.embed_dim = 256
    config.model.num_heads = 4
    config.model.mlp_dim = 512
    config.model.qk_norm = True
    config.model.scan_layers = False
    config.model.dropout = 0.2
    config.loss.label_smoothing = 0.1
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 4e-3
    config.schedule.kind = 'linear'
    config.schedule.warmup_steps = 100
    config.schedule.final_scale = 0.0
    config.train.steps = 1900
    config.train.eval_every = 190
    config.checkpoint.every = 95
    config.checkpoint.keep = 8
    config.eval.beams = 4
    config.generate.samples = 1
    config.generate.temperature = 0.0
    config.generate.prompts = ('Two young, White males are outside near many bushes.',)
    return config
