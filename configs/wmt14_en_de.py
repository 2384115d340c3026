"""WMT 2014, English to German, as one would train it today: `transformer_base_wmt14.py` of the same size.

    python -m lm.main --config=configs/wmt14_en_de.py --config.data.tfds_dir=/mnt/tensorflow_datasets

For 8 accelerators. Text, vocabulary, batch, steps, dropout, label smoothing and search are those of 2017,
so that BLEU compares. What differs makes training stable and cheaper: norms before the layers, without
biases, and on queries and keys; positions by rotation; bfloat16; gradients that are cut; and a learning
rate that ends near 0. Needs the TFDS data set `wmt14_translate/de-en`, prepared as ArrayRecord. Not yet run
here: a test holds the parameters.
"""

from ml_collections import ConfigDict

from configs import transformer_base_wmt14


def get_config() -> ConfigDict:
    config = transformer_base_wmt14.get_config()
    config.model.norm = 'rmsnorm'
    config.model.norm_placement = 'pre'
    config.model.position = 'rotary'
    config.model.bias = False
    config.model.qk_norm = True
    config.model.dtype = 'bfloat16'
    config.model.vocab_multiple = 128
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    config.schedule.kind = 'cosine'
    config.schedule.final_scale = 0.01
    return config
