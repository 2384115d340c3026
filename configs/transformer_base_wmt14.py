"""The Transformer (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), base, English to German.

    python -m lm.main --config=configs/transformer_base_wmt14.py \\
        --config.data.tfds_dir=/mnt/tensorflow_datasets

For 8 accelerators: 25,000 tokens a side and step, 100,000 steps (12 hours on eight P100 in the paper; 27.3
BLEU on newstest2014 with four beams, of the mean of the last five checkpoints). Needs the TFDS data set
`wmt14_translate/de-en`, prepared as ArrayRecord. Not yet run here: a test holds the parameters.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'tfds:wmt14_translate/de-en#en,de[train]'
    config.data.valid = 'tfds:wmt14_translate/de-en#en,de[validation]'
    config.data.test = 'tfds:wmt14_translate/de-en#en,de[test]'
    config.data.length = 256
    config.data.batch_size = 104
    config.tokenizer.kind = 'bpe'
    config.tokenizer.vocab_size = 37_000
    config.tokenizer.train_bytes = 100_000_000
    config.objective.name = 'seq2seq'
    config.model.architecture = 'encoder_decoder'
    config.model.num_layers = 6
    config.model.embed_dim = 512
    config.model.num_heads = 8
    config.model.mlp_dim = 2048
    config.model.activation = 'relu'
    config.model.norm = 'layernorm'
    config.model.norm_placement = 'post'
    config.model.position = 'sinusoidal'
    config.model.bias = True
    config.model.dropout = 0.1
    config.loss.label_smoothing = 0.1
    config.optimizer.learning_rate = 7e-4  # 512^-0.5 4000^-0.5
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-9
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.schedule.kind = 'inverse_sqrt'
    config.schedule.warmup_steps = 4000
    config.train.steps = 100_000
    config.train.log_every = 100
    config.train.eval_every = 5000
    config.checkpoint.every = 1000
    config.checkpoint.keep = 5
    config.eval.checkpoint = 'average:5'  # Section 6.1.
    return config
