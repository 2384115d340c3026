"""The loss of each objective over its training, beside that of the best constant guess."""

from pathlib import Path
from typing import Any

from experiments.objectives.cases import CASES
from lm.plots import PALETTE

_COLUMNS = 4
_COLORS = {'decoder': 0, 'encoder': 1, 'encoder_decoder': 2}
_INK, _GREY = '#222222', '#777777'
_GUESS = {'color': _GREY, 'linewidth': 1, 'linestyle': (0, (4, 3))}


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draws a panel for each record, and one that says what they show."""
    from matplotlib.figure import Figure

    rows = -(-(len(records) + 1) // _COLUMNS)
    drawing = Figure((10.5, 2.45 * rows), layout='constrained')
    drawing.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
    panels = drawing.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axes, found in zip(panels, records, strict=False):
        _panel(axes, found)
    for axes in panels[len(records) :]:
        axes.axis('off')
    _legend(panels[len(records)], records)
    drawing.savefig(path, dpi=144)


def _panel(axes: Any, found: dict[str, Any]) -> None:
    case = next(case for case in CASES if case.name == found['case'])
    term, *_ = case.predicts
    numbers, steps = found['predictions'][term], found['steps']
    before, after, guess = (numbers[when]['nats'] for when in ('before', 'after', 'guess'))
    curve = [[0, before], *found['curves'][term]]
    color = PALETTE[_COLORS[_architecture(found)]][0]

    axes.axhline(guess, zorder=1, **_GUESS)
    axes.plot(*zip(*curve, strict=True), color=color, linewidth=1.2, alpha=0.6, zorder=2)
    axes.plot(0, before, 'o', color='white', markeredgecolor=color, markersize=5.5, zorder=3)
    axes.plot(steps, after, 'o', color=color, markersize=5.5, zorder=3)
    near = {'textcoords': 'offset points', 'ha': 'center', 'va': 'top', 'zorder': 4}
    strong = {'color': color, 'fontweight': 'bold'}
    axes.annotate(f'{after:.2f}', (steps, after), (0, -6), fontsize=9, **near, **strong)

    inside = {'transform': axes.transAxes}
    axes.set_title(case.name, loc='left', fontsize=11, fontweight='bold', color=_INK, pad=16)
    told = f'{case.like}: {case.predicts[term]}'
    axes.text(0, 1.035, told, fontsize=8, color=_GREY, **inside)
    right, constant = (f'{numbers[when]["accuracy"]:.1%}' for when in ('after', 'guess'))
    top = 1.1 * max(guess, after, *(value for _, value in curve))
    # Where the curve is not.
    x, y = (0.04, 0.06) if min(value for _, value in curve) > 0.15 * top else (0.36, 0.43)
    axes.text(x, y + 0.11, f'{right} right', fontsize=10, **strong, **inside)
    axes.text(x, y, f'a constant guess: {constant}', fontsize=8, color=_GREY, **inside)

    axes.set_ylim(0, top)
    axes.set_xlim(-0.05 * steps, 1.1 * steps)
    axes.set_xticks([0, steps])
    axes.tick_params(colors=_GREY, labelsize=8, length=2)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color('#bbbbbb')


def _legend(axes: Any, records: list[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    names = {'decoder': 'decoder', 'encoder': 'encoder', 'encoder_decoder': 'encoder-decoder'}
    there = {_architecture(found) for found in records}
    handles = [
        Line2D([], [], color=PALETTE[_COLORS[name]][0], linewidth=2, label=shown)
        for name, shown in names.items()
        if name in there
    ]
    marks = {'marker': 'o', 'linestyle': '', 'markersize': 5.5, 'markeredgecolor': _INK}
    handles += [
        Line2D([], [], color='white', label='validation, before', **marks),
        Line2D([], [], color=_INK, label='validation, after', **marks),
        Line2D([], [], label='best constant guess', **_GUESS),
    ]
    texts = {'fontsize': 9, 'labelcolor': _INK, 'title_fontsize': 9, 'alignment': 'left'}
    title = 'nats a prediction, over steps'
    axes.legend(handles=handles, loc='center left', frameon=False, title=title, **texts)


def _architecture(found: dict[str, Any]) -> str:
    return found['config'].get('model.architecture', 'decoder')
