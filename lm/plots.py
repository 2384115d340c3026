"""Figures: charts as SVG that take their colours from the page, and the learning-rate range test.

matplotlib is imported inside the functions, so that `import lm` stays quick, and without pyplot, so
that nothing here touches a notebook's figures or needs a display.
"""

import dataclasses
import io
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm.errors import InputError
from lm.writer import atomic_write, short

# The colours of the series, told apart by people of every colour vision (Okabe and Ito, 2008; the
# yellow darkened), as (on light, on dark). The page defines them as --c0, --c1, ...
PALETTE = (
    ('#0072b2', '#56b4e9'),
    ('#d55e00', '#f0904d'),
    ('#009e73', '#2fc89f'),
    ('#aa4499', '#dd8fc8'),
    ('#8a6d00', '#e6c229'),
    ('#5b5b95', '#a9a9e6'),
)
DASHES = ('', '6 3', '2 3')  # Further series repeat the colours with these.
_INK, _GRID = '#010203', '#040506'  # Stand for the page's --muted and --line.
_SIZE = (440, 270)  # Points; so small that its text is still readable on a phone.


class Picture:
    """A figure that notebooks show.

    Attributes:
        figure: of matplotlib.
    """

    def __init__(self, figure) -> None:
        self.figure = figure

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.figure.savefig(file, format='png', dpi=144)
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """Writes a PNG."""
        Path(path).write_bytes(self._repr_png_())


@dataclasses.dataclass(frozen=True)
class Series:
    """One line or set of points of a chart.

    Attributes:
        name: for the legend.
        points: pairs `(x, y)`; one that is not finite is left out.
        style: `line`, or `points` (joined by a thin line).
        color: index into the colours and dashes.
        faint: drawn pale, and left out of the legend.
    """

    name: str
    points: Sequence[Sequence[float]]
    style: str = 'line'
    color: int = 0
    faint: bool = False


def thin(points: Sequence[Sequence[float]], most: int) -> list[list[float]]:
    """Returns at most about `most` of the points, in order, keeping the first, the last and each spike.

    The points are cut into equal runs, of which the lowest and the highest are kept.
    """
    if len(points) <= most:
        return [list(point) for point in points]
    values = np.array([math.nan if y is None else y for _, y in points], float)
    keep = {0, len(points) - 1}
    for run in np.array_split(np.arange(len(points)), max(1, most // 2 - 1)):
        finite = run[np.isfinite(values[run])]
        if len(finite):
            keep |= {int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])}
    return [list(points[i]) for i in sorted(keep)]


def smooth(
    points: Sequence[Sequence[float]], share: float = 0.04, most: int = 1000
) -> list[list[float]]:
    """Returns at most `most` points, each the mean of the middle half of its neighbours' values.

    `share` of all points count as neighbours; of their values the lowest and the highest quarter are
    left out, so that a spike stays out of the line. The window is centred, so that nothing lags
    behind. It is narrower at the start, where a loss falls fast, and one-sided at the end.
    """
    points = [point for point in points if point[1] is not None and math.isfinite(point[1])]
    values = np.array([y for _, y in points])
    half = int(len(points) * share / 2)
    centres = np.unique(np.linspace(0, len(points) - 1, min(len(points), most)).astype(int))
    result = []
    for i in centres:
        near = np.sort(values[i - min(half, i) : i + min(half, i) + 1])
        quarter = len(near) // 4
        result.append([points[i][0], float(near[quarter : len(near) - quarter].mean())])
    return result


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    prefix: str,
    perplexity: bool = False,
    zero: bool = False,
    logarithmic: str = '',
) -> str:
    """Returns a chart as an `<svg>` element whose colours are the page's CSS variables.

    Args:
        series: what is drawn; the later lies above.
        x_label: with its unit.
        y_label: with its unit.
        prefix: put before each id, so that several charts can stand in one page.
        perplexity: mark exp(y) on the right. The first 2 % of a long curve may then reach above the
            top, since a loss before training would flatten all that follows.
        zero: the y axis begins at 0.
        logarithmic: the axes that are: '', 'x', 'y' or 'xy'.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style = {
        'svg.fonttype': 'none',
        'svg.hashsalt': prefix,
        'font.size': 11,
        'axes.edgecolor': _GRID,
        'axes.labelcolor': _INK,
        'xtick.color': _INK,
        'ytick.color': _INK,
        'xtick.major.size': 0,
        'ytick.major.size': 0,
        'grid.color': _GRID,
        'path.simplify': False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_SIZE[0] / 72, _SIZE[1] / 72), layout='constrained')
        axes = figure.add_subplot()
        for one in series:
            _draw(axes, one)
        for side in ('top', 'right', 'left'):
            axes.spines[side].set_visible(False)
        axes.grid(axis='y', linewidth=0.8)
        axes.set_axisbelow(True)
        axes.margins(x=0.02)
        steps = [1, 2, 2.5, 5, 10]
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=steps))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=steps))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        for name in logarithmic:
            _logarithmic(axes, name)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if perplexity:
            _perplexity_axis(axes, series)
        elif zero:
            axes.set_ylim(bottom=0)
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format='svg',
            transparent=True,
            metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')),
        )
    return _inline(buffer.getvalue(), f'{y_label} over {x_label}', prefix)


def _logarithmic(axes, name: str) -> None:
    """Makes the axis `x` or `y` logarithmic, with ticks at 1, 2 and 5 where they have room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(**{f'{name}scale': 'log'})
    low, high = axes.get_xlim() if name == 'x' else axes.get_ylim()
    axis = axes.xaxis if name == 'x' else axes.yaxis
    steps = (1, 2, 5) if high / low < 300 else (1,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _tick(value: float) -> str:
    return short(value) if abs(value) >= 1000 else f'{value:.4g}'


def _draw(axes, series: Series) -> None:
    points = [(x, y) for x, y in series.points if y is not None and math.isfinite(y)]
    if not points:
        return
    color = PALETTE[series.color % len(PALETTE)][0]
    x, y = zip(*points, strict=True)
    options = {'linewidth': 1.0 if series.faint or series.style == 'points' else 1.8}
    if series.faint:
        options['alpha'] = 0.28
    if series.style == 'points' or len(points) == 1:
        options |= {'marker': 'o', 'markersize': 4.5}
    dashes = DASHES[series.color // len(PALETTE) % len(DASHES)]
    if dashes:
        options['dashes'] = [float(length) for length in dashes.split()]
    axes.plot(x, y, color=color, **options)


def _perplexity_axis(axes, series: Sequence[Series]) -> None:
    """Cuts the loss before training off the top, and marks exp(loss) on the right."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    values = [y for one in series for _, y in one.points[len(one.points) // 50 :]]
    values = [y for y in values if y is not None and math.isfinite(y)]
    if not values:
        return
    margin = 0.05 * (max(values) - min(values)) or 0.1
    low, high = min(values) - margin, max(values) + margin
    axes.set_ylim(low, high)
    right = axes.twinx()
    for side in right.spines.values():
        side.set_visible(False)
    right.set_ylim(low, high)
    right.yaxis.set_major_locator(FixedLocator(_perplexity_ticks(low, high)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _tick(float(f'{math.exp(y):.3g}'))))
    right.set_ylabel('perplexity')


def _perplexity_ticks(low: float, high: float) -> list[float]:
    """Returns the logarithms of round perplexities, as many as have room."""
    from matplotlib.ticker import MaxNLocator

    if high - low < 1.2:
        marks = MaxNLocator(5).tick_values(math.exp(low), math.exp(min(high, 700)))
        return [math.log(mark) for mark in marks if mark > 0 and low < math.log(mark) < high]
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [math.log(m * 10.0**e) for e in range(-2, 300) for m in steps]
        ticks = [tick for tick in ticks if low < tick < high]
        if all(b - a > (high - low) / 10 for a, b in itertools.pairwise(ticks)):
            return ticks
    return []


def _inline(svg: str, label: str, prefix: str) -> str:
    """Makes a file of matplotlib's an element of a page: no header, own ids, the page's colours."""
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
    svg = svg.replace('xlink:href', 'href')
    svg = re.sub(r' id="([^"]+)"', rf' id="{prefix}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf'\1#{prefix}-', svg)
    svg = re.sub(r'font: ([\d.]+px)[^;"]*', r'font-size: \1', svg)
    svg = re.sub(r'font-family: [^;"]*;? ?', '', svg)
    for number, (color, _) in enumerate(PALETTE):
        svg = svg.replace(color, f'var(--c{number})')
    svg = svg.replace(_INK, 'var(--muted)').replace(_GRID, 'var(--line)')
    size = f'viewBox="0 0 {_SIZE[0]} {_SIZE[1]}"'
    return re.sub(r'<svg[^>]*>', f'<svg {size} role="img" aria-label="{label}">', svg, count=1)


def suggest_learning_rate(learning_rates: Sequence[float], losses: Sequence[float | None]) -> float:
    """Returns the learning rate at which the loss of a range test falls steepest.

    The rule of the range test (Smith, 2017) as fastai has it: of the learning rates before the
    smoothed loss is lowest, the one where the slope of the loss over log(learning rate) is steepest.
    Here the slope is that of the line through the neighbouring eighth of the points, by least squares,
    which a single noisy step does not move; and losses above those of the first tenth are cut to them,
    so that the way down from a spike does not count as a fall.

    Args:
        learning_rates: of each step of the test, positive.
        losses: of each step; those that are not finite are left out.

    Raises:
        InputError: fewer than 8 losses are finite, or the loss never falls.
    """
    pairs = sorted(
        (math.log(rate), loss)
        for rate, loss in zip(learning_rates, losses, strict=True)
        if loss is not None and math.isfinite(loss)
    )
    if len(pairs) < 8:
        raise InputError(
            f'the learning-rate range test has {len(pairs)} finite losses; it needs 8 or more: '
            'start it at a lower learning rate.'
        )
    x, y = np.array(pairs).T
    y = np.minimum(y, y[: max(1, len(y) // 10)].max())
    half = max(2, len(x) // 16)
    level, slope = np.empty(len(x)), np.empty(len(x))
    for i in range(len(x)):
        near = slice(max(0, i - half), i + half + 1)
        level[i] = y[near].mean()
        slope[i] = np.polynomial.polynomial.polyfit(x[near] - x[i], y[near], 1)[1]
    lowest = int(level.argmin())
    steepest = int(slope[: lowest + 1].argmin())
    if slope[steepest] >= 0:
        raise InputError(
            f'the loss falls at no learning rate from {math.exp(x[0]):.1e} to {math.exp(x[-1]):.1e}: '
            'test a wider range.'
        )
    return float(math.exp(x[steepest]))


def learning_rate_plot(
    points: Sequence[tuple[float, float | None]],
    suggestion: float,
    output: str | Path,
    y_label: str = 'loss (nats per token)',
) -> Path:
    """Draws a learning-rate range test, with the suggested value marked, as a PNG.

    Args:
        points: pairs (learning rate, loss), in the order of the test.
        suggestion: see `suggest_learning_rate`.
        output: path of the PNG; written whole or not at all.
        y_label: with its unit.
    """
    from matplotlib.figure import Figure

    finite = [(rate, loss) for rate, loss in points if loss is not None and math.isfinite(loss)]
    rates, losses = zip(*finite, strict=True)
    smoothed = smooth(finite, 0.1)
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout='constrained')
    axes = figure.add_subplot()
    blue, orange = PALETTE[0][0], PALETTE[1][0]
    axes.plot(rates, losses, color=blue, alpha=0.3, linewidth=1)
    axes.plot(*zip(*smoothed, strict=True), color=blue, linewidth=2)
    axes.axvline(suggestion, color=orange, linewidth=1.5)
    axes.annotate(
        f'suggested: {suggestion:.1e}',
        (suggestion, 0.96),
        xycoords=('data', 'axes fraction'),
        xytext=(6, 0),
        textcoords='offset points',
        color=orange,
        va='top',
    )
    start = max(losses[: max(1, len(losses) // 10)])
    low = min(y for _, y in smoothed)
    axes.set_ylim(low - 0.1 * (start - low), start + 0.25 * (start - low) or None)
    axes.set_xscale('log')
    axes.set_xlabel('learning rate (log scale)')
    axes.set_ylabel(f'training {y_label}')
    axes.grid(alpha=0.3)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    return atomic_write(output, buffer.getvalue())
