"""The pieces of a report: numbers and tables as text, Markdown and HTML, and the page around them.

A page stands alone: style and figures are inline, nothing is fetched, no script runs. It follows the
reader's light or dark setting and is readable on a phone.
"""

import difflib
import html
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lm.plots import DASHES, PALETTE, Series

NOTHING = '–'  # Stands where a number was not measured or is not finite.


def number(value: Any, digits: int = 4) -> str:
    """Returns a number for people: 12,345,678; 24.53; 0.0003; an en dash for None and NaN."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(value)
    if abs(value) >= 1e15:
        return f'{value:.{digits - 1}e}'
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return f'{value:,.0f}'
    return f'{value:.{digits}g}' if abs(value) < 1e-4 else f'{value:#.{digits}g}'


def text(value: Any) -> str:
    """Returns a config value or an entry of the environment as one line."""
    if isinstance(value, str):
        return value if value else "''"
    if isinstance(value, Mapping):
        return ', '.join(f'{k} {text(v)}' for k, v in value.items()) or '{}'
    if isinstance(value, list | tuple):
        return ', '.join(text(item) for item in value) or '()'
    return NOTHING if value is None else str(value)


def printable(value: str) -> str:
    """Returns text with all that a page cannot hold, such as a model's control bytes, as U+FFFD."""
    return re.sub(r'[^\t\n -~\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]', '\ufffd', value)


def escape(value: str) -> str:
    """Returns text that HTML shows as it is."""
    return html.escape(printable(value))


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an aligned table for the terminal: the first column to the left, the others right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return '\n'.join(
        '  '.join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _numeric(rows: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """Which columns hold numbers, and so stand to the right; the first never does."""
    return [
        i > 0 and all(re.fullmatch(r'[-–+\d.,:e%×\[\] ]+[kMB]?[*]?', row[i]) for row in rows)
        for i in range(columns)
    ]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; columns of numbers stand to the right."""
    marks = ['---:' if numeric else '---' for numeric in _numeric(rows, len(head))]
    lines = [[markdown_text(cell) for cell in line] for line in (head, *rows)]
    lines.insert(1, marks)
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def markdown_text(value: str) -> str:
    """Returns text as one line of Markdown, or a cell of a table, without HTML of its own."""
    shown = html.escape(printable(value), quote=False).replace('\n', ' ')
    return shown.replace('|', r'\|').replace('*', r'\*')


def markdown_block(value: str) -> str:
    """Returns a fenced block that holds any text, fences too."""
    longest = max((len(run) for run in re.findall('`+', value)), default=0)
    fence = '`' * max(3, longest + 1)
    return f'{fence}text\n{printable(value)}\n{fence}\n'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], marked: Collection[int] = (), wide: int = -1
) -> str:
    """Returns an HTML table; columns of numbers stand to the right.

    Args:
        head: names of the columns; all '' for none.
        rows: cells, as plain text.
        marked: numbers of the rows to mark.
        wide: the column that takes all width that is left, -1 for none.
    """
    kinds = [
        ' class="number"' if numeric else ' class="wide"' if i == wide else ''
        for i, numeric in enumerate(_numeric(rows, len(head)))
    ]
    cells = ''.join(f'<th{k}>{escape(c)}</th>' for c, k in zip(head, kinds, strict=True))
    top = f'<thead><tr>{cells}</tr></thead>' if any(head) else ''
    body = ''.join(
        f'<tr{" class=marked" if i in marked else ""}>'
        + ''.join(f'<td{k}>{escape(c)}</td>' for c, k in zip(row, kinds, strict=True))
        + '</tr>'
        for i, row in enumerate(rows)
    )
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def tiles(entries: Sequence[tuple[str, str]]) -> str:
    """Returns the row of large numbers, from pairs (label, value)."""
    cells = ''.join(
        f'<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>' for label, value in entries
    )
    return f'<dl class="tiles">{cells}</dl>'


def bars(head: Sequence[str], rows: Sequence[tuple[str, float, Sequence[str]]]) -> str:
    """Returns a table whose second column is a bar.

    Args:
        head: names of the columns, with that of the bar.
        rows: label, length of the bar from 0 to 1, and further cells, as plain text.
    """
    cells = ''.join(f'<th>{escape(name)}</th>' for name in head[:2])
    cells += ''.join(f'<th class="number">{escape(name)}</th>' for name in head[2:])
    body = ''.join(
        f'<tr><td>{escape(label)}</td><td class="bar"><i style="width:{100 * length:.2f}%"></i></td>'
        + ''.join(f'<td class="number">{escape(cell)}</td>' for cell in more)
        + '</tr>'
        for label, length, more in rows
    )
    return (
        f'<div class="scroll"><table class="bars"><thead><tr>{cells}</tr></thead>'
        f'<tbody>{body}</tbody></table></div>'
    )


def beside(left: str, right: str, titles: tuple[str, str]) -> str:
    """Returns two texts side by side, with the words marked that the other one lacks."""
    parts = [re.findall(r'\s+|\w+|.', printable(text)) for text in (left, right)]
    matcher = difflib.SequenceMatcher(None, *parts, autojunk=False)
    shown = ['', '']
    for kind, a, b, c, d in matcher.get_opcodes():
        for side, found in enumerate((parts[0][a:b], parts[1][c:d])):
            text = html.escape(''.join(found))
            shown[side] += f'<mark>{text}</mark>' if kind != 'equal' and text else text
    columns = ''.join(
        f'<div><p class="note">{escape(title)}</p><pre>{text}</pre></div>'
        for title, text in zip(titles, shown, strict=True)
    )
    return f'<div class="beside">{columns}</div>'


def figure(title: str, series: Sequence[Series], svg: str) -> str:
    """Returns a chart with its title and, where it shows several series, its legend."""
    named = [one for one in series if not one.faint]
    keys = ''.join(f'<li>{_swatch(one)}{escape(one.name)}</li>' for one in named)
    legend = f'<ul>{keys}</ul>' if len(named) > 1 else ''
    return f'<figure><figcaption>{escape(title)}{legend}</figcaption>{svg}</figure>'


def _swatch(series: Series) -> str:
    color = f'var(--c{series.color % len(PALETTE)})'
    dashes = DASHES[series.color // len(PALETTE) % len(DASHES)]
    dot = f'<circle cx="11" cy="5" r="3.5" fill="{color}"/>' if series.style == 'points' else ''
    return (
        f'<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true"><path d="M0 5H22" '
        f'stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"/>{dot}</svg>'
    )


def section(title: str, body: str) -> str:
    """Returns a section of the page under its heading."""
    return (
        f'<section id="{title.lower().replace(" ", "-")}"><h2>{escape(title)}</h2>{body}</section>'
    )


def page(title: str, lead: str, body: str) -> str:
    """Returns the whole page.

    Args:
        title: as plain text.
        lead: the line below the title, as plain text.
        body: HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>{escape(title)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n<main>\n'
        f'<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>\n{body}\n</main>\n'
        '</body>\n</html>\n'
    )


def _style() -> str:
    light, dark = (
        ''.join(f'--c{i}:{pair[theme]};' for i, pair in enumerate(PALETTE)) for theme in (0, 1)
    )
    return _STYLE.replace('LIGHT', light).replace('DARK', dark)


_STYLE = """
:root { color-scheme: light dark; --ground: #fbfbf9; --card: #fff; --ink: #1d2125; --muted: #5d666f;
  --line: #e3e4e0; --mark: #fdf3d7; --mark-ink: #8a5a00; LIGHT }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171a; --card: #1b1f23; --ink: #e4e6e8; --muted: #9aa4ad; --line: #30363c;
    --mark: #332b16; --mark-ink: #e9c069; DARK }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui,
  -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { margin: 0; font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
h2 { margin: 52px 0 14px; font-size: 19px; font-weight: 650; }
h3 { margin: 24px 0 8px; font-size: 15px; font-weight: 600; }
p { margin: 8px 0; }
a { color: var(--c0); overflow-wrap: anywhere; }
header p, .note { color: var(--muted); font-size: 14px; max-width: 80ch; }
.warning { background: var(--mark); color: var(--mark-ink); border-radius: 8px; padding: 10px 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(136px, 1fr)); gap: 1px;
  margin: 24px 0 0; background: var(--line); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; }
.tiles div { background: var(--card); padding: 14px 16px; }
dt { color: var(--muted); font-size: 13px; }
dd { margin: 2px 0 0; font-size: 23px; font-weight: 600; font-variant-numeric: tabular-nums;
  letter-spacing: -.01em; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 18px; }
figure { margin: 0; padding: 14px 14px 8px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; min-width: 0; }
figure > svg { display: block; width: 100%; height: auto; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 18px; align-items: baseline; font-size: 14px;
  font-weight: 600; margin-bottom: 6px; }
figcaption ul { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0; padding: 0;
  list-style: none; font-weight: 400; font-size: 13px; color: var(--muted);
  overflow-wrap: anywhere; }
.swatch { width: 22px; height: 10px; margin-right: 6px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 7px 14px; text-align: left; vertical-align: top; }
th { color: var(--muted); font-weight: 500; font-size: 13px; white-space: nowrap; }
tr + tr, thead + tbody tr { border-top: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; min-width: 7ch; }
td:first-child { white-space: nowrap; }
td.wide { overflow-wrap: anywhere; min-width: 22ch; }
.number { text-align: right; white-space: nowrap; }
tr.marked td { background: var(--mark); }
tr.marked td:first-child { font-weight: 600; box-shadow: inset 3px 0 var(--mark-ink); }
pre { margin: 0 0 14px; padding: 14px 16px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; font: 13.5px/1.6 ui-monospace, 'SF Mono', Menlo, Consolas,
  'DejaVu Sans Mono', monospace; white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; }
.bars .bar { width: 40%; min-width: 120px; vertical-align: middle; }
.bar i { display: block; height: 12px; min-width: 1px; border-radius: 2px; background: var(--c0); }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr));
  gap: 0 14px; }
mark { background: var(--mark); color: var(--mark-ink); border-radius: 2px; }
pre b { color: var(--c0); font-weight: 700; }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--muted); font-size: 14px; margin-bottom: 10px; }
@media (max-width: 600px) { main { padding: 24px 14px 60px; } h1 { font-size: 24px; }
  th, td { padding: 6px 10px; } dd { font-size: 20px; } figure { padding: 10px 8px 4px; } }
@media print { details > * { display: block; } main { padding: 0; } }
"""
