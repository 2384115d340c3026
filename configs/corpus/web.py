"""Web pages as a corpus: English and Chinese of WARC files, with the rules of Gopher, C4 and FineWeb.

    python -m lm.corpus --config=configs/corpus/web.py \\
      --config.sources="('web=warc:crawl/*.warc.gz#text{url}',)"

The steps and their order are about those of FineWeb (https://arxiv.org/abs/2406.17557), without
its filter of addresses, and with duplicates compared over the whole corpus.
"""

from ml_collections import ConfigDict

from configs.corpus import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.sources = ('web=warc:crawl/*.warc.gz#text{url}',)
    config.clean.extract = 'always'
    config.clean.languages = ('en', 'zh')
    config.clean.language_score = 0.65
    config.clean.filters = ('gopher_repetition', 'gopher_quality', 'c4', 'fineweb')
    config.duplicates.boilerplate = 100
    return config
