"""The change of bits a byte by each augmentation, with its spread over seeds."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.augmentation.cases import CASES
from lm.plots import PALETTE

_INK, _GREY = '#222222', '#777777'
_HELPS, _NEITHER, _HARMS = PALETTE[2][0], _GREY, PALETTE[1][0]


class Measured(NamedTuple):
    """What one case comes to.

    Attributes:
        values: bits a byte of each seed, float64 [seeds].
        changes: those less the bits without augmentation of the same seed, float64 [seeds].
    """

    values: np.ndarray
    changes: np.ndarray

    @property
    def interval(self) -> float:
        """Half of the 95 % interval of the mean change, by Student's t."""
        return interval(self.changes)

    @property
    def verdict(self) -> str:
        """Whether zero is outside of the interval, and on which side of it."""
        mean = self.changes.mean()
        if abs(mean) <= self.interval:
            return 'neither'
        return 'helps' if mean < 0 else 'harms'


class Row(NamedTuple):
    """A case, at the end of training and at the evaluation that was lowest.

    `train` is the mean loss of the last training steps, nats a token.
    """

    name: str
    end: Measured
    lowest: Measured
    train: float


def interval(values: np.ndarray) -> float:
    """Returns half of the 95 % interval of a mean, by Student's t; 0 for one value.

    >>> interval(np.array([1.0, 2.0, 3.0]))  # 4.303 / sqrt(3)
    2.484
    """
    quantiles = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
    count = len(values)
    return quantiles[count] * values.std(ddof=1) / count**0.5 if count > 1 else 0.0


def bits(record: dict[str, Any]) -> tuple[float, float]:
    """Returns bits a byte at the end, and at the evaluation that was lowest."""
    valid, lowest = record['splits']['valid'], min(loss for _, loss in record['valid_losses'])
    return valid['bits_per_byte'], valid['bits_per_byte'] * lowest / valid['loss']


def rows(records: list[dict[str, Any]]) -> list[Row]:
    """Returns the cases that are there, those that lower the loss most at the end first."""
    measured = {(r['case'], r['seed']): bits(r) for r in records}
    found = []
    for case in CASES:
        own = [r for r in records if r['case'] == case.name]
        seeds = [r['seed'] for r in own if (case.reference.name, r['seed']) in measured]
        if not seeds:
            continue
        values = np.array([measured[case.name, seed] for seed in seeds]).T
        before = np.array([measured[case.reference.name, seed] for seed in seeds]).T
        end, lowest = map(Measured, values, values - before)
        train = float(np.mean([r['train_loss'] for r in own]))
        found.append(Row(case.name, end, lowest, train))
    return sorted(found, key=lambda row: row.end.changes.mean())


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draws a line for each augmentation: each seed, their mean, and its 95 % interval."""
    from matplotlib.figure import Figure

    shown = [row for row in rows(records) if row.end.changes.any()][::-1]
    if not shown:
        return
    drawing = Figure((9.6, 1.3 + 0.33 * len(shown)), layout='constrained')
    panels = drawing.subplots(1, 2, sharey=True, sharex=True)
    _panel(panels[0], shown, [row.end for row in shown], 'at the end')
    _panel(panels[1], shown, [row.lowest for row in shown], 'where it was lowest (early stopping)')
    panels[0].set_yticks(range(len(shown)), [row.name for row in shown], fontsize=9)
    panels[0].set_ylim(-0.7, len(shown) - 0.3)
    label = 'change of validation bits a byte, against none with the same seed (left is better)'
    drawing.supxlabel(label, fontsize=9, color=_INK)
    drawing.savefig(path, dpi=144)


def _panel(axes: Any, shown: list[Row], measured: list[Measured], title: str) -> None:
    axes.axvline(0, color=_GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    colors = {'helps': _HELPS, 'neither': _NEITHER, 'harms': _HARMS}
    for height, one in enumerate(measured):
        color, mean, heights = colors[one.verdict], one.changes.mean(), [height] * len(one.changes)
        axes.plot(one.changes, heights, '|', color=color, markersize=9, alpha=0.7)
        line = {'capsize': 3, 'markersize': 6, 'zorder': 3}
        axes.errorbar(mean, height, xerr=one.interval, fmt='o', color=color, **line)
        axes.annotate(
            f'{mean:+.3f}',
            (1.02, height),
            xycoords=('axes fraction', 'data'),
            color=color,
            fontweight='bold',
            fontsize=9,
            va='center',
        )
    axes.margins(x=0.05)
    axes.set_title(title, loc='left', fontsize=11, fontweight='bold', color=_INK)
    axes.tick_params(colors=_GREY, labelcolor=_INK, length=2)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color('#bbbbbb')
