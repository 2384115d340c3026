"""Characters of Shakespeare, in nanoGPT's CPU setting.

    python -m lm.main --config=configs/shakespeare_char.py

Needs tinyshakespeare's `input.txt` (1.1 MB) in $LM_DATA_DIR/tinyshakespeare. The split is nanoGPT's: the
first 90 % of the characters train, the last 10 % validate. For this setting (4 layers, 4 heads, width 128,
context 64, batch 12, 2,000 steps, no dropout) nanoGPT reports a validation loss of 1.88, measured on a
sample. Here it is 1.739, on the whole validation part, in 6 minutes on 2 busy CPU cores: with rotary
positions and a higher learning rate (see experiments/shakespeare/README.md).

The setting of nanoGPT's 1.4697 on a GPU (of its best checkpoint, so evaluate with --checkpoint=best; not
yet run here):

    python -m lm.main --config=configs/shakespeare_char.py --workdir=runs/shakespeare_gpu \\
      --config.model.num_layers=6 --config.model.num_heads=6 --config.model.embed_dim=384 \\
      --config.model.dropout=0.2 --config.data.length=256 --config.data.batch_size=64 \\
      --config.train.steps=5000 --config.model.dtype=bfloat16 --config.optimizer.learning_rate=1e-3
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'data:tinyshakespeare/input.txt[:90%]'
    config.data.valid = 'data:tinyshakespeare/input.txt[90%:]'
    config.data.test = ''
    config.data.length = 64
    config.data.batch_size = 12
    config.data.random_crop = True
    config.tokenizer.kind = 'chars'
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.embed_dim = 128
    config.model.norm = 'layernorm'
    config.model.position = 'rotary'
    config.model.scan_layers = False
    config.optimizer.learning_rate = 2e-3
    config.optimizer.b2 = 0.99  # few tokens a step
    config.schedule.warmup_steps = 100
    config.train.steps = 2000
    config.generate.prompts = ('ROMEO:', '\n')
    config.generate.max_tokens = 300
    return config
