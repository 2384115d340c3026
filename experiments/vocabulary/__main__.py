"""Fertility of each kind of tokenizer at several sizes, on text that it was not trained on.

LM_DATA_DIR=DIR python -m experiments.vocabulary > experiments/vocabulary/results.jsonl
python -m experiments.vocabulary --table experiments/vocabulary/results.jsonl   # as Markdown
"""

import dataclasses
import json
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import lm
from lm import config as configs
from lm import fertility, tokenizer
from lm.data import source
from lm.page import markdown_table, number
from lm.tokenizer import WrongSize

LIBRARY = f'text:{sysconfig.get_path("stdlib")}/*.py'
# Name -> what is trained on, what is measured.
TEXTS = {
    'English': ('data:brown/brown.txt + data:wikitext2/valid.txt', 'data:wikitext2/test.txt'),
    'Chinese': (
        'data:chinese_poetry/songci_train.txt + data:chinese_poetry/tang_train.txt',
        'data:chinese_poetry/songci_test.txt + data:chinese_poetry/tang_test.txt',
    ),
    'Python': (f'{LIBRARY}[:90%]', f'{LIBRARY}[90%:]'),
}
SIZES = (4096, 16_384, 50_257)
CASES = (
    *((kind, size) for kind in tokenizer.WITH_SYMBOLS for size in SIZES),
    ('chars', 0),
    ('bytes', 0),
)
KEYS = (
    *('tokens_per_word', 'tokens_per_spaced_word', 'tokens_per_byte', 'bytes_per_token'),
    *('unknown_rate', 'byte_rate', 'word_coverage', 'vocabulary_used', 'words', 'bytes'),
)


def measure(name: str, kind: str, size: int) -> dict[str, Any]:
    """Returns what a kind of tokenizer comes to on a text, or why the text does not allow it."""
    base = configs.parse(lm.get_config('base'))
    train, held_out = (source.parse(spec, base.data).documents for spec in TEXTS[name])
    spec = dataclasses.replace(base.tokenizer, kind=kind, vocab_size=size or 1)
    start = time.perf_counter()
    try:
        made = tokenizer.build(spec, train)
    except WrongSize as error:
        return {'text': name, 'kind': kind, 'size': size, 'right': error.right}
    seconds = time.perf_counter() - start
    facts = fertility.measure(made, {name: held_out()})['all']
    found = {'text': name, 'kind': kind, 'size': size, 'vocab_size': made.vocab_size}
    return found | {key: facts[key] for key in KEYS} | {'train_seconds': round(seconds, 1)}


def table(lines: list[dict[str, Any]]) -> str:
    """Returns the results as Markdown: tokens per word, bytes per token."""
    found = {(line['text'], line['kind'], line['size']): line for line in lines}

    def cell(line: dict[str, Any]) -> str:
        if 'right' in line:
            end = 'needs' if line['right'] > line['size'] else 'has'
            return f'{end} {number(line["right"])}'
        return f'{line["tokens_per_word"]:.2f} / {line["bytes_per_token"]:.2f}'

    rows = [
        [kind, number(size) if size else 'all', *(cell(found[name, kind, size]) for name in TEXTS)]
        for kind, size in CASES
    ]
    return markdown_table(['kind', 'ids', *TEXTS], rows)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--table']:
        print(table([json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]))
    else:
        for text in TEXTS:
            for case in CASES:
                print(json.dumps(measure(text, *case)), flush=True)
