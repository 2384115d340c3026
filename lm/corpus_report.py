"""What became of a corpus' raw text: `report.json` for programs, `report.md`, `report.html` to look at."""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lm import page
from lm.config import flatten, to_dict
from lm.data import corpus_shards
from lm.data.corpus import contamination, ledger, near
from lm.data.corpus.options import Duplicates
from lm.data.corpus.stages import Stage
from lm.data.corpus.work import Work
from lm.environment import host
from lm.page import number
from lm.plots import Series, chart
from lm.writer import atomic_write, duration

Json = dict[str, Any]
_PACKAGES = ('datatrove', 'ftfy', 'trafilatura', 'numpy', 'pyarrow')
_SHOWN = 1200  # Characters of each text of a pair.
# What the outcomes of planted documents are called that are no names of steps.
_KEPT = ('kept', 'restored', 'kept, not restored')


class Report(Stage):
    """The last stage, after which a corpus is finished."""

    name = 'report'

    def task(self, rank: int, tasks: int) -> None:
        found = facts(self.work)
        folder = self.work.folder
        atomic_write(folder / 'report.json', json.dumps(found, indent=1, ensure_ascii=False))
        atomic_write(folder / 'report.md', markdown(found))
        atomic_write(folder / 'report.html', html(found))


def facts(work: Work) -> Json:
    """Returns what report.json holds."""
    cleaned, written = work.ledger('clean'), work.ledger('write')
    made = json.loads((work.folder / corpus_shards.MANIFEST).read_text())
    total = ledger.Ledger(work.options.report.examples)
    for account in (cleaned, written):
        total.add(account)
    found: Json = {
        'name': work.folder.resolve().name,
        'steps': [{'name': name, **step} for name, step in total.steps.items()],
        'sources': {
            name: dict(zip(('documents', 'bytes', 'kept', 'kept_bytes'), counts, strict=True))
            for name, counts in total.sources.items()
        },
        'splits': {
            split: {
                'shards': len(entries),
                'documents': sum(entry['documents'] for entry in entries),
                'size': sum(entry['size'] for entry in entries),
            }
            for split, entries in made['splits'].items()
        },
        'lengths': dict(sorted(total.lengths.items(), key=lambda item: int(item[0]))),
        'planted': planted(total.planted),
        'near': _near(work),
        'contamination': _contamination(work, total),
        'config': dict(flatten(to_dict(work.options))),
        'environment': host(_PACKAGES),
    }
    return found


def planted(found: dict[str, dict[str, int]]) -> list[Json]:
    """Returns of each fault the documents, those that were dropped, by step, and those restored.

    Documents with the fault '' are good ones.
    """
    result = []
    for fault, outcomes in sorted(found.items()):
        steps = {name: count for name, count in outcomes.items() if name not in _KEPT}
        result.append(
            {
                'fault': fault,
                'documents': sum(outcomes.values()),
                'dropped': sum(steps.values()),
                'restored': outcomes.get('restored', 0),
                'steps': steps,
            }
        )
    return result


def _near(work: Work) -> Json | None:
    if not work.options.duplicates.near:
        return None
    found = json.loads(work.path('near.json').read_text())
    wanted: dict[int, set[int]] = {}
    for pair in found['pairs']:
        for shard, document in (pair['first'], pair['second']):
            wanted.setdefault(shard, set()).add(document)
    texts: dict[tuple[int, int], Json] = {}
    for shard, documents in wanted.items():
        for place, line in enumerate(corpus_shards.read_jsonl(work.cleaned(shard))):
            if place in documents:
                texts[shard, place] = json.loads(line)
    for pair in found['pairs']:
        for side in ('first', 'second'):
            record = texts[tuple(pair[side])]
            pair[side] = {'source': record['source'], 'text': record['text'][:_SHOWN]}
    return found


def _contamination(work: Work, total: ledger.Ledger) -> Json:
    path = work.path('evaluation.npz')
    if not path.exists():
        return {}
    dropped = total.step('contamination')['reasons']
    return {
        name: {'texts': texts, 'too_short': short_ones, 'dropped': dropped.get(name, 0)}
        for name, (texts, short_ones) in contamination.load(path).texts.items()
    }


# --- words and pictures ----------------------------------------------------------------------------


def megabytes(size: float) -> str:
    """Returns bytes for people, in MB."""
    return f'{size / 1e6:,.2f}'


def headline(found: Json) -> list[tuple[str, str]]:
    """Returns the numbers that come first, as pairs (label, value)."""
    came, kept = (
        [sum(source[key] for source in found['sources'].values()) for key in keys]
        for keys in (('documents', 'bytes'), ('kept', 'kept_bytes'))
    )
    return [
        ('documents read', number(came[0])),
        ('documents kept', number(kept[0])),
        ('of the documents', f'{100 * kept[0] / max(1, came[0]):.1f} %'),
        ('of the bytes', f'{100 * kept[1] / max(1, came[1]):.1f} %'),
        ('MB kept', megabytes(kept[1])),
        ('processor time', duration(sum(step['seconds'] for step in found['steps']))),
    ]


def _why(step: Json) -> str:
    reasons = sorted(step['reasons'].items(), key=lambda item: (-item[1], item[0]))
    told = [f'{reason} {count:,}' for reason, count in reasons[:4]]
    return ', '.join([*told, *(['...'] if len(reasons) > 4 else [])])


def steps_table(found: Json) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of the table of steps."""
    head = ['step', 'documents', 'dropped', 'changed', 'MB', 'MB/s', 'why dropped']
    rows = []
    for step in found['steps']:
        speed = step['bytes'] / 1e6 / step['seconds'] if step['seconds'] else None
        rows.append(
            [
                step['name'],
                number(step['documents']),
                number(step['documents'] - step['kept']),
                number(step['changed']),
                megabytes(step['bytes']),
                page.NOTHING if speed is None else number(speed, 3),
                _why(step),
            ]
        )
    return head, rows


def funnel(found: Json) -> list[tuple[str, int, int]]:
    """Returns (step, documents, bytes) that are left of all sources after each step."""
    documents, size = (
        sum(s[key] for s in found['sources'].values()) for key in ('documents', 'bytes')
    )
    rows = []
    for step in found['steps']:
        documents -= step['documents'] - step['kept']
        size -= step['bytes'] - step['kept_bytes']
        if step['name'] != 'hashing':  # It drops nothing.
            rows.append((step['name'], documents, size))
    return rows


def planted_table(found: Json) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of the table of planted faults."""
    head = ['planted', 'documents', 'dropped', 'restored', 'dropped %', 'restored %', 'by']
    rows = [
        [
            entry['fault'] or 'nothing wrong',
            *(number(entry[key]) for key in ('documents', 'dropped', 'restored')),
            *(f'{100 * entry[key] / entry["documents"]:.2f}' for key in ('dropped', 'restored')),
            ', '.join(f'{name} {count:,}' for name, count in sorted(entry['steps'].items())),
        ]
        for entry in found['planted']
    ]
    return head, rows


def _tables(found: Json) -> Iterator[tuple[str, str, list[str], list[list[str]]]]:
    """Yields title, a line of words, head and rows."""
    if found['planted']:
        words = (
            'Documents that were put into the sources to test the steps, by what is wrong with them. '
            'What can be repaired is restored where the text is that before the fault, but for white '
            'space; of good documents what is dropped is dropped falsely.'
        )
        yield 'Planted faults', words, *planted_table(found)
    head = ['source', 'documents', 'kept', 'MB', 'MB kept']
    yield (
        'Sources',
        '',
        head,
        [
            [
                name,
                *(number(s[k]) for k in ('documents', 'kept')),
                megabytes(s['bytes']),
                megabytes(s['kept_bytes']),
            ]
            for name, s in found['sources'].items()
        ],
    )
    words = 'By the hash of each text: a document stays in its split when the corpus grows.'
    rows = [
        [name, number(s['documents']), number(s['shards']), megabytes(s['size'])]
        for name, s in found['splits'].items()
    ]
    yield 'Splits', words, ['split', 'documents', 'shards', 'MB on disk'], rows
    if found['contamination']:
        size = found['config']['contamination.ngram']
        words = (
            f'Documents with {size} words in a row of an evaluation set, or a whole shorter text of it, '
            'were dropped. Texts of it that are too short cannot be looked for.'
        )
        rows = [
            [name, *(number(value) for value in values.values())]
            for name, values in found['contamination'].items()
        ]
        head = ['evaluation set', 'texts looked for', 'too short', 'documents dropped']
        yield 'Contamination', words, head, rows


def markdown(found: Json) -> str:
    """Returns report.md."""
    parts = [f'# The corpus {found["name"]}\n']
    parts.append(', '.join(f'{label}: {value}' for label, value in headline(found)) + '\n')
    parts.append('## Steps\n\n' + page.markdown_table(*steps_table(found)))
    for title, words, head, rows in _tables(found):
        parts.append(
            f'## {title}\n\n' + (f'{words}\n\n' if words else '') + page.markdown_table(head, rows)
        )
    return '\n'.join(parts)


def html(found: Json) -> str:
    """Returns report.html."""
    body = [page.tiles(headline(found)), page.section('Funnel', _funnel_html(found))]
    for title, words, head, rows in _tables(found):
        note = f'<p class="note">{page.escape(words)}</p>' if words else ''
        body.append(page.section(title, note + page.table(head, rows)))
    body.append(page.section('Lengths', _lengths_html(found)))
    if found['config']['vocabulary.kind']:
        link = (
            '<p>Its size, coverage and fertility: <a href="vocabulary/report.html">report</a>.</p>'
        )
        body.append(page.section('Vocabulary', link))
    if found['near']:
        body.append(page.section('Near duplicates', _near_html(found)))
    body.append(page.section('What was dropped and changed', _examples_html(found)))
    config = [[key, page.text(value)] for key, value in found['config'].items()]
    environment = [[key, page.text(value)] for key, value in found['environment'].items()]
    body.append(page.section('Config', page.table(['', ''], config, wide=1)))
    body.append(page.section('Environment', page.table(['', ''], environment, wide=1)))
    lead = 'From raw text to a corpus: what was kept, what was thrown away, and why.'
    return page.page(f'Corpus {found["name"]}', lead, '\n'.join(body))


def _funnel_html(found: Json) -> str:
    left = funnel(found)
    _, first, size = left[0]
    bars, before = [], first
    for name, documents, kept in left:
        cells = [
            number(documents),
            number(before - documents),
            f'{100 * kept / max(1, size):.1f} %',
        ]
        bars.append((name, documents / max(1, first), cells))
        before = documents
    picture = page.bars(['after', '', 'documents', 'dropped', 'of the bytes'], bars)
    head, rows = steps_table(found)
    note = (
        '<p class="note">Documents and MB came to the step; MB/s are of one process. A filter of some '
        'sources sees theirs only.</p>'
    )
    return picture + '<h3>Steps</h3>' + page.table(head, rows, wide=len(head) - 1) + note


def _lengths_html(found: Json) -> str:
    most = max(found['lengths'].values(), default=1)
    rows = []
    for power, count in found['lengths'].items():
        high = (1 << int(power)) - 1
        low = (high + 1) // 2
        label = f'{low:,}' if low == high else f'{low:,} to {high:,}'
        rows.append((label, count / most, [number(count)]))
    return page.bars(['words of a document', '', 'documents'], rows)


def _near_html(found: Json) -> str:
    config = found['config']
    minhash = Duplicates(*(config[f'duplicates.{key}'] for key in Duplicates.__dataclass_fields__))
    words = (
        f'Documents are compared by {minhash.bands} bands of {minhash.rows} hashes of their '
        f'{minhash.shingle}-word shingles; of those that agree in a band, pairs of an estimated similarity '
        f'of {minhash.near} and more count as near duplicates, of which the first stays.'
    )
    series = _curve(minhash)
    svg = chart(
        series,
        x_label='Jaccard similarity, percent',
        y_label='percent found',
        prefix='near',
        zero=True,
    )
    figures = [page.figure('How likely a pair is found', series, svg)]
    histogram = found['near']['histogram']
    if any(histogram):
        width = 100 / len(histogram)
        points = [(width * (place + 0.5), count) for place, count in enumerate(histogram)]
        series = [Series('pairs', points)]
        svg = chart(
            series,
            x_label='estimated similarity, percent',
            y_label='pairs that agree in a band',
            prefix='pairs',
            zero=True,
        )
        figures.append(page.figure('Pairs that were compared', series, svg))
    shown = ''.join(
        page.beside(
            pair['first']['text'],
            pair['second']['text'],
            (
                f'{pair["first"]["source"]}: kept',
                f'{pair["second"]["source"]}: similarity {pair["similarity"]:.2f}, '
                + ('dropped' if pair['removed'] else 'kept too'),
            ),
        )
        for pair in found['near']['pairs']
    )
    return f'<p class="note">{words}</p><div class="charts">{"".join(figures)}</div>' + (
        f'<h3>Pairs: the nearest, and those around the threshold</h3>{shown}' if shown else ''
    )


def _curve(options: Duplicates, draws: int = 1000) -> list[Series]:
    """Returns how likely a pair agrees in a band, and how likely it is dropped (simulated)."""
    rng = np.random.default_rng(0)
    shape = (draws, options.bands, options.rows)
    lines: list[list[tuple[float, float]]] = [[], []]
    for similarity in np.linspace(0, 1, 51):
        agree = rng.random(shape) < similarity
        band = agree.all(axis=2).any(axis=1)
        enough = agree.mean(axis=(1, 2)) >= options.near
        lines[0].append((100 * similarity, 100 * float(near.probability(similarity, options))))
        lines[1].append((100 * similarity, 100 * float((band & enough).mean())))
    return [
        Series('agree in a band', lines[0], color=0),
        Series('and are similar enough: dropped', lines[1], color=1),
    ]


def _examples_html(found: Json) -> str:
    parts = []
    for step in found['steps']:
        inside = []
        for reason, examples in sorted(step['examples'].items()):
            count = step['reasons'].get(reason, step['changed'])
            title = f'{reason or "changed"}: {count:,}'
            inside.append(f'<h3>{page.escape(title)}</h3>')
            for _, *texts in examples:
                if len(texts) == 2:
                    inside.append(page.beside(*texts, ('before', 'after')))
                else:
                    inside.append(f'<pre>{page.escape(texts[0])}</pre>')
        if inside:
            parts.append(
                f'<details><summary>{page.escape(step["name"])}</summary>{"".join(inside)}</details>'
            )
    note = (
        '<p class="note">The beginning of some documents, chosen by the hashes of their texts.</p>'
    )
    return note + ''.join(parts) if parts else '<p class="note">Nothing was.</p>'


def say(found: Json, tell: Callable[[str], None]) -> None:
    """Tells the result in the terminal."""
    head, rows = steps_table(found)
    tell(page.text_table(head[:6], [row[:6] for row in rows]))
    for title, _, names, cells in itertools.islice(_tables(found), 1 + bool(found['planted'])):
        if title == 'Planted faults':
            tell('\n' + page.text_table(names, cells))
    told = (f'{split} {s["documents"]:,}' for split, s in found['splits'].items())
    tell(f'\nDocuments: {", ".join(told)}')
