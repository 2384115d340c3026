"""The report of a vocabulary: report.json for programs, report.md for git, report.html for people."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm import page
from lm.page import number
from lm.plots import Series, chart, thin
from lm.tokenizer import Tokenizer
from lm.writer import atomic_write, plain

# Columns of the tables: key, name, and whether it is a rate, shown in percent.
FERTILITY = (
    ('bytes', 'bytes', False),
    ('words', 'words', False),
    ('tokens', 'tokens', False),
    ('tokens_per_word', 'tokens/word', False),
    ('tokens_per_spaced_word', 'tokens/spaced word', False),
    ('tokens_per_byte', 'tokens/byte', False),
    ('bytes_per_token', 'bytes/token', False),
    ('characters_per_token', 'characters/token', False),
)
COVERAGE = (
    ('word_coverage', 'words covered', True),
    ('different_word_coverage', 'different words', True),
    ('character_coverage', 'characters covered', True),
    ('different_character_coverage', 'different characters', True),
    ('unknown_rate', 'unknown tokens', True),
    ('byte_rate', 'byte tokens', True),
    ('vocabulary_used', 'vocabulary used', True),
)
RULES = (
    'A word is a run of letters, marks and digits, or any other visible character; each Chinese or '
    'Japanese character is a word. Spaced words are what white space (and Chinese or Japanese characters) '
    'keeps apart. Tokens are those of the whole text, without BOS and EOS.'
)
COVERED = (
    'Words and characters of the text that are one token by themselves (a word with the space before it): '
    'of all, and of the different ones. Unknown tokens stand for what the vocabulary lacks, and the text '
    'is lost there; byte tokens spell it, or are another part of a character; both are of all tokens. '
    'Vocabulary used: ids that occur, of those that stand for text.'
)
_MOST_WORDS = 12  # Tokens of a word; longer ones are the last point of the figure.
_SMALL = 0.0005  # A rate that needs more digits.
_LOST = 0.01  # The rate of unknown tokens from which fertility means nothing.
_MARK = 11  # Colour and dashes of a known size.

Table = tuple[str, list[str], list[list[str]]]


def write(folder: str | Path, tokenizer: Tokenizer, content: Mapping[str, Any]) -> None:
    """Writes the tokenizer and report.{json,md,html}; the folder is made."""
    folder = Path(folder)
    atomic_write(folder / tokenizer.file, tokenizer.serialized())
    atomic_write(folder / 'report.json', json.dumps(plain(content), indent=1) + '\n')
    atomic_write(folder / 'report.md', markdown(content))
    atomic_write(folder / 'report.html', html(content))


def visible(piece: bytes) -> str:
    """Returns a piece as people can read it.

    >>> [visible(piece) for piece in (b' the', b'\\n', b'\\xe4', '\\u200d'.encode())]
    ['␣the', '⏎', '<E4>', '<U+200D>']
    """
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return ''.join(f'<{byte:02X}>' for byte in piece)
    marks = {' ': '␣', '\n': '⏎', '\t': '⇥'}
    return ''.join(marks.get(c) or (c if _is_seen(c) else f'<U+{ord(c):04X}>') for c in text)


def _is_seen(character: str) -> bool:
    return unicodedata.category(character)[0] not in 'CZ'


def percent(rate: float | None) -> str:
    """Returns a rate in percent: 12.3 %; below 0.05 % with two digits more, so that it is not 0."""
    if rate is None:
        return page.NOTHING
    return f'{100 * rate:.{3 if 0 < rate < _SMALL else 1}f} %'


def table(
    title: str, groups: Mapping[str, Mapping[str, Any]], columns: Sequence[tuple[str, str, bool]]
) -> Table:
    """Returns a table of facts (`lm.fertility.facts`), a row a group."""
    rows = [
        [name, *(percent(facts[key]) if rate else number(facts[key]) for key, _, rate in columns)]
        for name, facts in groups.items()
    ]
    return title, [title, *(name for _, name, _ in columns)], rows


def tables(content: Mapping[str, Any]) -> list[tuple[str, str, Table]]:
    """Returns headings, notes and tables of a report."""
    groups, sources = content['groups'], content['sources']
    title = 'source' if groups.keys() == sources.keys() else 'language'
    with_all = {**groups, 'all': content['all']} if len(groups) > 1 else groups
    found = [
        ('Fertility', RULES, table(title, with_all, FERTILITY)),
        ('Coverage', COVERED, table(title, with_all, COVERAGE)),
    ]
    if title == 'language':
        shown = (FERTILITY[0], *FERTILITY[2:4], FERTILITY[6], COVERAGE[0], *COVERAGE[4:6])
        found.append(('Sources', '', table('source', sources, shown)))
    if content['compared']:
        found.append(('Beside others', _BESIDE, _compared(content)))
    return found


_BESIDE = (
    'The same text, in tokens per word, bytes per token, and tokens that are unknown or bytes.'
)


def _compared(content: Mapping[str, Any]) -> Table:
    """Returns the table of this tokenizer and the others."""
    own = {**content['tokenizer'], 'groups': content['groups'], 'all': content['all']}
    groups = list(content['groups'])
    head = ['tokenizer', 'kind', 'ids', 'unknown', 'bytes']
    for group in groups:
        head += [f'{group}: tokens/word', f'{group}: bytes/token']
    rows = []
    for name, one in {'this one': own, **content['compared']}.items():
        rates = (percent(one['all'][key]) for key in ('unknown_rate', 'byte_rate'))
        row = [name, one['kind'], number(one['vocab_size']), *rates]
        for group in groups:
            facts = one['groups'][group]
            row += [number(facts['tokens_per_word']), number(facts['bytes_per_token'])]
        rows.append(row)
    return 'tokenizer', head, rows


def curve_table(content: Mapping[str, Any]) -> Table:
    """Returns the curve of fertility against size as a table."""
    names = list(content['groups'])
    head = ['ids', *(f'{name}: tokens/{of}' for name in names for of in ('word', 'byte'))]
    keys = 'tokens_per_word', 'tokens_per_byte'
    rows = [
        [
            number(point['vocab_size']),
            *(number(point['groups'][n][key]) for n in names for key in keys),
        ]
        for point in content['curve']['points']
    ]
    return 'ids', head, rows


def pieces_table(content: Mapping[str, Any]) -> Table:
    """Returns the most and the least frequent pieces beside each other."""
    pieces, tokens = content['pieces'], content['all']['tokens']
    most, least, unused = (
        pieces[key] for key in ('most_frequent', 'least_frequent', 'unused_such_as')
    )
    rows = []
    for i, one in enumerate(most):
        last = [least[i]['piece'], number(least[i]['count'])] if i < len(least) else ['', '']
        never = unused[i]['piece'] if i < len(unused) else ''
        share = percent(one['count'] / tokens)
        rows.append([str(i + 1), one['piece'], number(one['count']), share, *last, never])
    head = [
        'rank',
        'most frequent',
        'times',
        'of tokens',
        'least frequent',
        'times',
        'never, such as',
    ]
    return 'rank', head, rows


def specials_table(content: Mapping[str, Any]) -> Table:
    """Returns the special ids: the tokenizer's, those that the config adds, and its symbols."""
    made = content['tokenizer']
    found = {name.upper(): str(i) for name, i in made['specials'].items()}
    if ids := made['sentinels']:
        found[f'{len(ids)} sentinels'] = f'{ids[0]} to {ids[-1]}'
    found |= {f'code {name}': str(i) for name, i in made['codes'].items()}
    found |= {f'symbol {name}': str(i) for name, i in made['symbols'].items()}
    return 'special', list(found), [list(found.values())]


def headline(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the numbers that come first."""
    made, facts = content['tokenizer'], content['all']
    return [
        ('kind', made['kind']),
        ('ids', number(made['vocab_size'])),
        ('tokens per word', number(facts['tokens_per_word'])),
        ('bytes per token', number(facts['bytes_per_token'])),
        ('unknown tokens', percent(facts['unknown_rate'])),
        ('vocabulary used', percent(facts['vocabulary_used'])),
    ]


def lead(content: Mapping[str, Any]) -> str:
    """Returns what was measured on what, in a line."""
    made, facts = content['tokenizer'], content['all']
    origin = f'from {made["from"]}' if made['from'] else 'trained here'
    where = ', '.join(content['sources'])
    return (
        f'{made["kind"]}, {origin}, with {number(made["text_ids"])} ids for text (of them '
        f'{number(made["byte_ids"])} for bytes) and {made["vocab_size"] - made["text_ids"]} others; '
        f'measured on {number(facts["bytes"])} bytes, at most {number(content["sample"])} of each source '
        f'and language, spread over it: {where}'
    )


def curve_note(content: Mapping[str, Any]) -> str:
    """Returns how the curve was made, and what of it could not be."""
    found = content['curve']
    known = ', '.join(f'{name} has {number(size)} ids' for name, size in found['known'].items())
    first = (
        f'Vocabularies of kind {found["kind"]}, trained and measured on the same sample of the text (one '
        'that was trained on more of it has other numbers). '
        f'{known}. '
    )
    return first + ' '.join(found['notes'])


def markdown(content: Mapping[str, Any]) -> str:
    """Returns report.md."""
    labels, values = zip(*headline(content), strict=True)
    parts = ['# Vocabulary\n', page.markdown_text(lead(content)) + '\n']
    parts.append(page.markdown_table(labels, [values]))
    for heading, note, (_, head, rows) in tables(content):
        parts += [
            f'## {heading}\n',
            *([note + '\n'] if note else []),
            page.markdown_table(head, rows),
        ]
    if content['curve']['points']:
        parts += ['## Size\n', curve_note(content) + '\n']
        parts.append(page.markdown_table(*curve_table(content)[1:]))
    parts += ['## Special tokens\n', page.markdown_table(*specials_table(content)[1:])]
    parts += ['## Pieces\n', page.markdown_table(*pieces_table(content)[1:])]
    return '\n'.join(parts)


def html(content: Mapping[str, Any]) -> str:
    """Returns report.html."""
    body = [page.tiles(headline(content))]
    for heading, note, (_, head, rows) in tables(content):
        below = f'<p class="note">{page.escape(note)}</p>' if note else ''
        body.append(page.section(heading, page.table(head, rows) + below))
        if heading == 'Coverage':
            body.append(page.section('Words and pieces', _charts(word_charts(content))))
    if content['curve']['points']:
        note = f'<p class="note">{page.escape(curve_note(content))}</p>'
        shown = page.table(*curve_table(content)[1:])
        body.append(page.section('Size', _charts(size_charts(content)) + note + shown))
    body.append(page.section('Special tokens', page.table(*specials_table(content)[1:])))
    body.append(page.section('Pieces', page.table(*pieces_table(content)[1:])))
    return page.page('Vocabulary', lead(content), '\n'.join(body))


def _charts(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>'


def word_charts(content: Mapping[str, Any]) -> list[str]:
    """Returns the figures of words by tokens, of the lengths of pieces and of their ranks."""
    words = []
    for color, (name, facts) in enumerate(content['groups'].items()):
        of, total = facts['tokens_of_words'], facts['words'] or 1
        points = [[n, 100 * of.get(n, 0) / total] for n in range(1, _MOST_WORDS)]
        rest = sum(count for n, count in of.items() if n >= _MOST_WORDS)
        points.append([_MOST_WORDS, 100 * rest / total])
        words.append(Series(name, points, 'points', color))
    lengths = content['pieces']['lengths']
    last = max(lengths, default=0)
    sizes = [Series('pieces', [[n, lengths.get(n, 0)] for n in range(last + 1)], 'points')]
    ranks = [Series('pieces', thin(content['pieces']['ranks'], 1000))]
    by_tokens = f'tokens of a word ({_MOST_WORDS}: or more)', '% of words'
    by_length = 'characters (0: a byte or a part of one)', 'pieces'
    return [
        _figure('Words by their tokens', words, by_tokens, 0),
        _figure('Length of the pieces', sizes, by_length, 1),
        _figure('Frequency of the pieces by rank', ranks, ('rank', 'times in the text'), 2, 'xy'),
    ]


def size_charts(content: Mapping[str, Any]) -> list[str]:
    """Returns the figures of fertility against the size of the vocabulary, with known sizes marked."""
    return [
        _size_chart(content, key, name, i)
        for i, (key, name) in enumerate(
            [('tokens_per_word', 'tokens per word'), ('tokens_per_byte', 'tokens per byte')], 3
        )
    ]


def _size_chart(content: Mapping[str, Any], key: str, name: str, place: int) -> str:
    found, groups = content['curve'], list(content['groups'])
    series = [
        Series(
            group,
            [[point['vocab_size'], point['groups'][group][key]] for point in found['points']],
            'points',
            color,
        )
        for color, group in enumerate(groups)
    ]
    for color, (other, one) in enumerate(content['compared'].items(), len(groups)):
        facts = [one['groups'][group] for group in groups]
        points = [[one['vocab_size'], f[key]] for f in facts if (f['unknown_rate'] or 0) < _LOST]
        series.append(Series(other, points, 'points', color))
    values = [y for one in series for _, y in one.points if y is not None]
    for label, size in found['known'].items():
        mark = [[size, min(values, default=0)], [size, max(values, default=1)]]
        series.append(Series(f'{label}: {number(size)} ids', mark, 'line', _MARK))
    return _figure(f'{name.capitalize()} by size', series, ('ids', name), place, 'x')


def _figure(
    title: str, series: Sequence[Series], axes: tuple[str, str], place: int, logarithmic: str = ''
) -> str:
    svg = chart(
        series,
        x_label=axes[0],
        y_label=axes[1],
        prefix=f'figure{place}',
        zero=not logarithmic,
        logarithmic=logarithmic,
    )
    return page.figure(title, series, svg)
