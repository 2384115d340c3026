"""A model of the shape of Llama 7B (6,738,415,616 parameters) on web text, for 16 accelerators.

    python -m lm.main --config=configs/llama_7b.py --mode=plan --topology=v5e:4x4
    python -m lm.main --config=configs/llama_7b.py --config.data.tfds_dir=/mnt/bucket/tensorflow_datasets

Shape, length and learning rate are those of Touvron et al. 2023 (https://arxiv.org/abs/2302.13971); a step
has 2 M tokens where theirs has 4 M, in 64 parts, so that 16 small chips hold one. Never run: only its plan
is (`experiments/plan`).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.train = 'tfds:c4/en#text[train]'
    config.data.valid = 'tfds:c4/en#text[validation]'
    config.data.test = ''
    config.data.length = 2048
    config.data.batch_size = 1024
    config.tokenizer.kind = 'bpe'
    config.tokenizer.vocab_size = 32_000
    config.tokenizer.train_bytes = 100_000_000
    config.model.num_layers = 32
    config.model.embed_dim = 4096
    config.model.num_heads = 32
    config.model.mlp_dim = 11_008
    config.model.activation = 'swiglu'
    config.model.tie_embeddings = False
    config.model.dtype = 'bfloat16'
    config.model.remat = 'full'
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.optimizer.learning_rate = 3e-4
    config.optimizer.accumulation = 64
    config.schedule.warmup_steps = 2000
    config.train.steps = 100_000
    config.train.log_every = 20
    config.train.eval_every = 1000
    config.eval.batches = 100
    config.checkpoint.every = 1000
    return config
