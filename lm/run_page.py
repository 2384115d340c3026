"""The parts of a run's report that say where its time went: goodput, and the profile of some steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm import page
from lm.goodput import PARTS
from lm.plots import PALETTE
from lm.profile_table import CATEGORIES, HOST
from lm.writer import duration

_SHORT = 600  # Seconds. Of shorter runs tenths are told.

GOODPUT_NOTE = (
    'All of the wall time of all starts, from the first to this report. A step is done again if an earlier '
    'start had come as far; a batch is waited for if the device had nothing else to do.'
)
PROFILE_NOTE = (
    'At each moment a device is with what it computes, or else with what it copies, or else with '
    'collectives, or else idle: what runs beside a computation costs no time. The mean of these devices.'
)


def markdown(report: Mapping[str, Any]) -> dict[str, str]:
    """Returns the sections of report.md by their titles; none of a report from before there were any."""
    found = {}
    if goodput := report.get('goodput'):
        table = page.markdown_table(*goodput_rows(goodput))
        found['Goodput'] = f'{_lead(goodput)}\n\n{table}'
    if profile := report.get('profile'):
        table = page.markdown_table(*profile_rows(profile))
        found['Profile'] = f'{_profiled(profile)} `{profile["trace"]}`.\n\n{table}'
    return found


def html(report: Mapping[str, Any]) -> dict[str, str]:
    """Returns the sections of report.html by their titles."""
    found = {}
    if goodput := report.get('goodput'):
        parts = [(PARTS.get(part, part), seconds) for part, seconds in goodput['parts'].items()]
        found['Goodput'] = (
            f'<p>{_lead(goodput)}</p>{stacked(parts)}{page.table(*goodput_rows(goodput))}'
            f'<p class="note">{GOODPUT_NOTE}</p>'
        )
    if profile := report.get('profile'):
        link = f'<a href="{page.escape(profile["trace"])}">{page.escape(profile["trace"])}</a>'
        found['Profile'] = (
            f'<p>{_profiled(profile)} {link}, which ui.perfetto.dev opens, or <code>pip install xprof '
            f'&amp;&amp; xprof --logdir={page.escape(profile["folder"])}</code> in the workdir.</p>'
            f'{page.table(*profile_rows(profile))}<p class="note">{PROFILE_NOTE}</p>'
        )
    return found


def goodput_rows(goodput: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of the table of `lm.goodput.summary`."""
    total = goodput['seconds']
    short = total < _SHORT
    parts = {PARTS.get(part, part): seconds for part, seconds in goodput['parts'].items()}
    rows = [
        [label, f'{seconds:.1f}' if short else duration(seconds), _share(seconds / total)]
        for label, seconds in (parts | {'all': total}).items()
    ]
    return ['part', 'seconds' if short else 'time', 'share'], rows


def profile_rows(profile: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of the table of `lm.profile_table.table`."""
    steps = 1 + profile['steps'][1] - profile['steps'][0]
    rows = [
        [where, label, f'{1e3 * share * profile["seconds"] / steps:,.2f}', _share(share)]
        for where, shares, labels in (
            ('device', profile['device'], {k: name for k, (name, _) in CATEGORIES.items()}),
            ('loop', profile['host'], HOST),
        )
        for part, share in shares.items()
        for label in [labels[part]]
    ]
    return ['on', 'doing', 'ms a step', 'share'], rows


def stacked(parts: Sequence[tuple[str, float]]) -> str:
    """Returns one bar of parts, as long as they are large, and its legend, from pairs (label, size)."""
    total, at, bar, keys = sum(size for _, size in parts), 0.0, '', ''
    for number, (label, size) in enumerate(parts):
        width = 100 * size / total
        # Where the colours begin again, they are paler.
        paler = 0.5 ** (number // len(PALETTE))
        look = f'fill="var(--c{number % len(PALETTE)})" opacity="{paler:g}"'
        name = page.escape(f'{label} {_share(size / total)}')
        bar += (
            f'<rect x="{at:.3f}" width="{width:.3f}" height="4" {look}><title>{name}</title></rect>'
        )
        keys += (
            f'<li><svg class="swatch" viewBox="0 0 22 10" aria-hidden="true"><rect width="22" height="10" '
            f'{look}/></svg>{page.escape(label)}</li>'
        )
        at += width
    svg = f'<svg viewBox="0 0 100 4" role="img" aria-label="shares of the time">{bar}</svg>'
    caption = f'<figcaption><ul>{keys}</ul></figcaption>'
    return f'<figure style="margin-bottom:14px">{caption}{svg}</figure>'


def _lead(goodput: Mapping[str, Any]) -> str:
    starts = 'one start' if goodput['starts'] == 1 else f'{goodput["starts"]} starts'
    return (
        f'{_share(goodput["share"])} of {_time(goodput["seconds"])} trained the model, in {starts}.'
    )


def _profiled(profile: Mapping[str, Any]) -> str:
    first, last = profile['steps']
    count = profile['devices']
    host = f' of host {profile["of"]}' if 'of' in profile else ''
    return f'Steps {first} to {last}, on {count} device{"s" * (count != 1)}{host}:'


def _share(value: float) -> str:
    return f'{100 * value:.1f} %'


def _time(seconds: float) -> str:
    return f'{seconds:.1f} s' if seconds < _SHORT else duration(seconds)
