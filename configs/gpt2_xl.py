"""GPT-2's largest model (1,557,611,200 parameters) on web text, for 16 accelerators of 16 GB or more.

    python -m lm.main --config=configs/gpt2_xl.py --mode=plan --topology=v5e:4x4
    python -m lm.main --config=configs/gpt2_xl.py --config.data.tfds_dir=/mnt/bucket/tensorflow_datasets

The architecture is OpenAI's (and 47 rows of padding in the vocabulary), the learning rate GPT-3's for this
size; the rest is as in `gpt2_124m.py`. Never run: only its plan is (`experiments/plan`).
"""

from ml_collections import ConfigDict

from configs import gpt2_124m


def get_config() -> ConfigDict:
    config = gpt2_124m.get_config()
    config.data.batch_size = 512
    config.model.num_layers = 48
    config.model.embed_dim = 1600
    config.model.num_heads = 25
    config.model.remat = 'full'
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.optimizer.learning_rate = 2e-4
    return config
