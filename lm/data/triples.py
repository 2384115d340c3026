"""Knowledge graphs: triples of head, relation and tail as sentences, or as questions and answers.

A file has a triple a line, its three parts between tabs. Where `id2name.tsv` stands beside it, that says
what its ids are called. Each triple is said twice, so that what reads from left to right learns both ends:

>>> questions(Triple('steroid', 'interacts with', 'eicosanoid'))
(('steroid interacts with', 'eicosanoid'), ('what interacts with eicosanoid?', 'steroid'))
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lm.data.slices import Document
from lm.errors import InputError

VERSION = 1  # Of the sentences.
NAMES = 'id2name.tsv'

# What stands between head and tail. Of other relations it is their name: `_has_part` is "has part".
PHRASES = {
    'isa': 'is a',
    '_hypernym': 'is a kind of',
    '_instance_hypernym': 'is an instance of',
    '_derivationally_related_form': 'is a form of',
    '_member_meronym': 'has the member',
    '_synset_domain_topic_of': 'is of the topic',
    '_member_of_domain_region': 'is the region of',
    '_member_of_domain_usage': 'is the usage of',
    '_verb_group': 'is a verb like',
    '_similar_to': 'is similar to',
}


class Triple(NamedTuple):
    """An edge of the graph, in words; an entity is known by its own."""

    head: str
    relation: str
    tail: str


def words(name: str) -> str:
    """Returns a name as words: `body_system` is "body system", and of `a.n.01|b.v.02` both.

    >>> words('_has_part'), words('/film/director')
    ('has part', 'film director')
    """
    return ' or '.join(' '.join(re.split(r'[_/\s]+', part)).strip() for part in name.split('|'))


def questions(triple: Triple) -> tuple[tuple[str, str], tuple[str, str]]:
    """Returns the question for the tail with its answer, and that for the head."""
    head, relation, tail = triple
    return (f'{head} {relation}', tail), (f'what {relation} {tail}?', head)


def sentences(triple: Triple) -> tuple[str, str]:
    """Returns each question and its answer as one sentence."""
    return tuple(map(' '.join, questions(triple)))


def documents(triples: Iterable[Triple], pairs: bool) -> Iterator[Document]:
    """Yields the two sentences of each triple, or its two questions, each with the answer after it."""
    for triple in triples:
        for question in questions(triple):
            yield from map(Document, question if pairs else (' '.join(question),))


def read(lines: Iterable[Document], names: Mapping[str, str], path: Path) -> Iterator[Triple]:
    """Yields the triples of a file.

    Args:
        lines: of the file; those without text are skipped.
        names: what ids are called, in words; the others are names themselves.
        path: of the file, for messages.

    Raises:
        InputError: a line has not three parts.
    """
    for number, line in enumerate(lines, 1):
        if not line.text.strip():
            continue
        parts = line.text.split('\t')
        if len(parts) != 3 or not all(map(words, parts)):
            raise InputError(
                f'{path}:{number} is not a triple: HEAD, RELATION and TAIL, with tabs between them.'
            )
        head, relation, tail = parts
        phrase = PHRASES.get(relation) or words(relation)
        yield Triple(names.get(head) or words(head), phrase, names.get(tail) or words(tail))


def read_names(lines: Iterable[Document], path: Path) -> dict[str, str]:
    """Returns what the ids of `id2name.tsv` are called, in words; a name that stands twice has the id too.

    Raises:
        InputError: a line has not an id and a name.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.text.strip():
            continue
        key, tab, name = line.text.partition('\t')
        name = words(name)
        if not tab or not key or not name:
            raise InputError(f'{path}:{number} is not an id and its name, with a tab between them.')
        name = f'{name} ({key})' if name in taken else name
        taken.add(name)
        found[key] = name
    return found
