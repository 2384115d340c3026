"""A corpus with planted faults: real documents, and others of which it is known what is wrong with them.

Good documents are film reviews (IMDB) and paragraphs of the Chinese Wikipedia (CMRC 2018), below
$LM_DATA_DIR. `write` puts them into `good.jsonl`, the planted ones into `planted.jsonl`: each record has
`text`, `fault`, and where the fault can be repaired `truth`, the text without it.
"""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

LEAST, MOST = 80, 2000  # Words (in Chinese, characters) of a good document.
# How many are planted of each fault.
COUNTS = {
    'exact copy': 200,
    'near copy': 400,
    'mojibake': 100,
    'html': 100,
    'boilerplate': 100,
    'other language': 150,
    'evaluation text': 150,
    'invalid bytes': 100,
    'empty': 20,
    'fifty megabytes': 2,
}
# Those that are repaired; the others are dropped.
REPAIRED = ('mojibake', 'html', 'boilerplate')
_HAN = range(0x4E00, 0xA000)


def good_texts(data: Path) -> list[str]:
    """Returns real documents, of which no two are the same."""
    found = {}
    for name in ('train', 'test'):
        with gzip.open(data / 'imdb_subset' / f'{name}.jsonl.gz', 'rt', encoding='utf-8') as file:
            for line in file:
                text = json.loads(line)['text'].replace('<br />', '\n')
                found['\n'.join(part.strip() for part in text.split('\n') if part.strip())] = None
    with gzip.open(data / 'cmrc2018' / 'dev.json.gz', 'rt', encoding='utf-8') as file:
        for article in json.load(file)['data']:
            for paragraph in article['paragraphs']:
                found[paragraph['context'].strip()] = None
    return [text for text in found if LEAST <= len(_words(text)) <= MOST]


def evaluation_texts(data: Path) -> list[str]:
    """Returns contexts of HellaSwag with at least 13 words."""
    with gzip.open(data / 'hellaswag' / 'val.jsonl.gz', 'rt', encoding='utf-8') as file:
        every = (json.loads(line)['ctx'] for line in file)
        return [text for text in every if len(text.split()) >= 16]


def _words(text: str) -> list[str]:
    """Returns words with what follows them, and Chinese characters each by itself."""
    if sum(ord(c) in _HAN for c in text[:200]) > 40:
        return list(text)
    return text.split(' ')


def _joined(words: list[str], like: str) -> str:
    return ('' if sum(ord(c) in _HAN for c in like[:200]) > 40 else ' ').join(words)


# --- faults: (text, rng, all words) -> (text with the fault, the text it should become, or '') -------


def _copy(text: str, rng: random.Random, other: list[str]) -> tuple[str, str]:
    """A copy; white space may differ."""
    return (text if rng.random() < 0.5 else text.replace('. ', '.  ') + '\n\n'), ''


def _near_copy(text: str, rng: random.Random, other: list[str]) -> tuple[str, str]:
    """A copy with 5 % of the words changed into others."""
    words = _words(text)
    for place in rng.sample(range(len(words)), max(1, round(0.05 * len(words)))):
        words[place] = rng.choice(_words(rng.choice(other)))
    return _joined(words, text), ''


def _mojibake(text: str, rng: random.Random, other: list[str]) -> tuple[str, str]:
    """UTF-8 that was read as Windows-1252, of a text with quotes, dashes and accents."""
    text = text.replace("'", '\u2019').replace(' - ', ' \u2014 ').replace('"', '\u201c')
    text += ' It was shown at a caf\u00e9 in Montr\u00e9al, na\u00efve as it is.'
    garbled = bytes(text, 'utf-8').decode('cp1252', errors='surrogateescape')
    return garbled.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace'), text


def _html(text: str, rng: random.Random, other: list[str]) -> tuple[str, str]:
    """A web page with navigation, scripts and a footer around the text."""
    items = ''.join(
        f'<li><a href="/{i}">{w}</a></li>' for i, w in enumerate(['Home', 'News', 'Shop'])
    )
    body = ''.join(f'<p>{part}</p>' for part in text.split('\n'))
    page = (
        '<!DOCTYPE html><html><head><title>A page</title><script>var a = 1;</script>'
        f'<style>p {{ margin: 0 }}</style></head><body><nav><ul>{items}</ul></nav>'
        f'<main><article>{body}</article></main><footer><a href="/terms">Terms of use</a> '
        '<span>Copyright 2024, all rights reserved</span></footer></body></html>'
    )
    return page, text


_BOILERPLATE = (
    'We use cookies to give you the best experience on our website. Accept all cookies.',
    'Sign up for our newsletter and never miss a story again, it is free of charge.',
    'Copyright 2024 by the publisher. All rights reserved. Terms of use and privacy policy.',
)


def _boilerplate(text: str, rng: random.Random, other: list[str]) -> tuple[str, str]:
    """Lines that stand in many documents."""
    first, *rest = _BOILERPLATE
    return '\n'.join([first, text, *rest]), text


def _invalid(text: str, rng: random.Random, other: list[str]) -> tuple[str, str]:
    """Bytes that are no UTF-8, one in fifty; U+DC80 to U+DCFF stand for them until it is written."""
    places = set(rng.sample(range(len(text)), len(text) // 50))
    return ''.join('\udcff' if i in places else c for i, c in enumerate(text)), ''


CHANGES: dict[str, Callable[[str, random.Random, list[str]], tuple[str, str]]] = {
    'exact copy': _copy,
    'near copy': _near_copy,
    'mojibake': _mojibake,
    'html': _html,
    'boilerplate': _boilerplate,
    'invalid bytes': _invalid,
}


def planted(data: Path, good: list[str], spare: list[str], rng: random.Random) -> Iterator[Record]:
    """Yields the planted documents.

    Args:
        data: $LM_DATA_DIR.
        good: documents that are in the corpus, of which some are copied.
        spare: others, which get a fault.
        rng: of what is drawn.
    """
    taken = iter(spare)
    for fault, change in CHANGES.items():
        for _ in range(COUNTS[fault]):
            copy = fault.endswith('copy')
            text, truth = change(rng.choice(good) if copy else next(taken), rng, good)
            yield {'text': text, 'fault': fault, 'truth': truth}
    evaluation = evaluation_texts(data)
    for _ in range(COUNTS['evaluation text']):
        words = next(taken).split(' ')
        words.insert(rng.randrange(len(words)), rng.choice(evaluation))
        yield {'text': ' '.join(words), 'fault': 'evaluation text', 'truth': ''}
    with gzip.open(data / 'multi30k' / 'train.de.gz', 'rt', encoding='utf-8') as file:
        german = file.read().splitlines()
    for number in range(COUNTS['other language']):
        text = ' '.join(german[20 * number : 20 * number + 20])
        yield {'text': text, 'fault': 'other language', 'truth': ''}
    for number in range(COUNTS['empty']):
        yield {'text': ('', ' \n\t', '\u200b')[number % 3], 'fault': 'empty', 'truth': ''}
    for _ in range(COUNTS['fifty megabytes']):
        text = '\n'.join(rng.choice(good) for _ in range(50_000))
        yield {'text': text[:50_000_000], 'fault': 'fifty megabytes', 'truth': ''}


def write(data: Path, folder: Path, seed: int = 0) -> dict[str, int]:
    """Writes good.jsonl, planted.jsonl and evaluation.jsonl; returns how many there are of each fault."""
    rng = random.Random(seed)
    good = good_texts(data)
    rng.shuffle(good)
    english = [text for text in good if text.isascii()]
    spare = english[: 2 * sum(COUNTS.values()) // 3]
    good = sorted(set(good) - set(spare))
    rng.shuffle(good)
    bad = list(planted(data, good, spare, rng))
    rng.shuffle(bad)
    folder.mkdir(parents=True, exist_ok=True)
    records = [{'text': text, 'fault': '', 'truth': ''} for text in good]
    _write(folder / 'good.jsonl', records)
    _write(folder / 'planted.jsonl', bad)
    _write(folder / 'evaluation.jsonl', [{'text': text} for text in evaluation_texts(data)])
    counts: dict[str, int] = {}
    for record in [*records, *bad]:
        counts[record['fault']] = counts.get(record['fault'], 0) + 1
    return counts


def _write(path: Path, records: list[Record]) -> None:
    with path.open('wb') as file:
        for record in records:
            line = json.dumps(record, ensure_ascii=False)
            file.write(line.encode('utf-8', 'surrogateescape') + b'\n')
