"""Data sets of the tasks, from the folder that `$LM_DATA_DIR` names. The harness reads this file."""

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import datasets

from lm.data.source import data_dir

Splits = dict[str, datasets.Dataset]


def _lines(name: str) -> Iterator[str]:
    with gzip.open(data_dir() / name, 'rt', encoding='utf-8', newline='\n') as file:
        for line in file:
            yield line.rstrip('\n')


def _json(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _lines(name)]


def _tsv(name: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(_lines(name), delimiter='\t', quoting=csv.QUOTE_NONE))


def _splits(read: Callable[[str], list[dict[str, Any]]], **names: str) -> Splits:
    return {split: datasets.Dataset.from_list(read(name)) for split, name in names.items()}


def hellaswag(**_: Any) -> Splits:
    return _splits(_json, validation='hellaswag/val.jsonl.gz')


def blimp(paradigm: str, **_: Any) -> Splits:
    return _splits(_json, train=f'blimp/{paradigm}.jsonl.gz')


def sst2(**_: Any) -> Splits:
    return _splits(_tsv, train='sst2/train.tsv.gz', validation='sst2/dev.tsv.gz')


def rte3(**_: Any) -> Splits:
    return _splits(_tsv, train='rte/rte3_dev.tsv.gz', test='rte/rte3_test.tsv.gz')


def ag_news(**_: Any) -> Splits:
    def read(name: str) -> list[dict[str, Any]]:
        rows = (line.split('\t') for line in _lines(name))
        return [{'label': int(label) - 1, 'text': text} for label, text in rows]

    return _splits(read, train='ag_news/train_5k.tsv.gz', test='ag_news/test.tsv.gz')


def eprstmt(**_: Any) -> Splits:
    return _splits(
        _json, train='fewclue/eprstmt_train.jsonl.gz', test='fewclue/eprstmt_test.jsonl.gz'
    )


def stereoset(**_: Any) -> Splits:
    return _splits(_json, test='stereoset/intrasentence_dev.jsonl.gz')


def wikitext2(**_: Any) -> Splits:
    """Articles: each begins with a line such as ` = Name = `."""

    def read(name: str) -> list[dict[str, Any]]:
        articles: list[list[str]] = []
        for line in _lines(name):
            is_title = line.startswith(' = ') and not line.startswith(' = = ')
            if is_title or not articles:
                articles.append([])
            articles[-1].append(line + '\n')
        return [{'page': ''.join(article)} for article in articles]

    return _splits(read, validation='wikitext2/valid.txt.gz', test='wikitext2/test.txt.gz')


def xquad(language: str, **_: Any) -> Splits:
    with gzip.open(data_dir() / f'xquad/{language}.json.gz', 'rt', encoding='utf-8') as file:
        articles = json.load(file)['data']
    rows = [
        {
            'context': paragraph['context'],
            'question': asked['question'],
            'answers': [answer['text'] for answer in asked['answers']],
        }
        for article in articles
        for paragraph in article['paragraphs']
        for asked in paragraph['qas']
    ]
    return {'test': datasets.Dataset.from_list(rows)}
