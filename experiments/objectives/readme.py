"""The table of the README, from the results."""

from pathlib import Path
from typing import Any

from experiments.objectives.cases import CASES
from lm.objectives import OBJECTIVES

_BEGIN, _END = '<!-- results -->', '<!-- end of results -->'
_HEAD = (
    '| objective | predicts | nats before | after | best constant guess | right before | after '
    '| best constant guess |\n|---|---|--:|--:|--:|--:|--:|--:|'
)


def write(records: list[dict[str, Any]], path: Path) -> None:
    """Puts the table in the place of the one between the marks."""
    text = path.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f'{before}{_BEGIN}\n{table(records)}\n{_END}{after}')


def table(records: list[dict[str, Any]]) -> str:
    """Returns where the runs were made, and what came out."""
    lines = ['![Loss over steps](results.png)\n', _HEAD]
    for found in records:
        name, *first = cells(found)
        lines.append(f'| `{name}` | {" | ".join(first)} |')
        others = list(_case(found).predicts)[1:]
        lines += [f'| | {" | ".join(_row(found, term))} |' for term in others]
    lines += ['', _where(records)]
    measured = {found['case'].partition(' ')[0] for found in records}
    if missing := [name for name in OBJECTIVES if name not in measured]:
        lines.append(f'Not measured here: {", ".join(f"`{name}`" for name in missing)}.')
    return '\n'.join(lines)


def cells(found: dict[str, Any]) -> list[str]:
    """Returns the first row of a record."""
    return [found['case'], *_row(found, next(iter(_case(found).predicts)))]


def _case(found: dict[str, Any]):
    return next(case for case in CASES if case.name == found['case'])


def _row(found: dict[str, Any], term: str) -> list[str]:
    numbers, order = found['predictions'][term], ('before', 'after', 'guess')
    return [
        _case(found).predicts[term],
        *(f'{numbers[when]["nats"]:.3f}' for when in order),
        *(f'{numbers[when]["accuracy"]:.1%}' for when in order),
    ]


def _where(records: list[dict[str, Any]]) -> str:
    """Returns a sentence of how much was done, on what, with which commit."""
    places = {
        (e['cores'], e['cpu'] if e['backend'] == 'cpu' else e['device'], e['jax'], e['commit'][:7])
        for e in (found['environment'] for found in records)
    }
    seconds = sum(found['seconds'] for found in records)
    sizes = [found['parameters'] for found in records]
    told = '; '.join(
        f'{cores} cores, {device}, jax {version}, commit {commit}'
        for cores, device, version, commit in sorted(places)
    )
    return (
        f'{records[0]["steps"]} steps each, {min(sizes) / 1e6:.2f} to {max(sizes) / 1e6:.2f} million '
        f'parameters, {seconds / 60:.0f} minutes in all. {told[0].upper()}{told[1:]}. All numbers: '
        '`results.jsonl`.'
    )
