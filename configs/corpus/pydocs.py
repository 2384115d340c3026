"""The documentation of Python itself as a cleaned corpus: half a minute on a laptop, nothing to download.

    python -m lm.corpus --config=configs/corpus/pydocs.py

Then open corpora/pydocs/report.html, and train on it:

    python -m lm.main --config=configs/quickstart.py --workdir=runs/clean \\
      --config.data.train='corpus:corpora/pydocs[train]' \\
      --config.data.valid='corpus:corpora/pydocs[valid]' \\
      --config.data.test='corpus:corpora/pydocs[test]'
"""

from ml_collections import ConfigDict

from configs.corpus import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.sources = ('pydocs=builtin:pydocs',)
    # A module's reference repeats the names of its arguments more than prose does.
    config.clean.filters = ()
    config.duplicates.exact = ('document', 'paragraph')
    config.vocabulary.kind = 'bpe'
    config.vocabulary.size = 4096
    config.split.valid = 0.05
    config.split.test = 0.05
    return config
