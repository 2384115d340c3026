"""The change of bits a byte by each augmentation, with its spread over seeds."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.augmentation.cases import CASES
from lm.plots import PALETTE

_INK, _GREY = '#222222', '#777777'
_HELPS, _NEITHER, _HARMS = PALETTE[2][0], _GREY, PALETTE[1][0]


class Row(NamedTuple):
    """What one case comes to.

    Attributes:
        name: of the case.
        values: bits a byte of each seed, float64 [seeds].
        changes: those less the bits without augmentation of the same seed, float64 [seeds].
        train: mean loss of the last training steps, nats a token.
    """

    name: str
    values: np.ndarray
    changes: np.ndarray
    train: float

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


def interval(values: np.ndarray) -> float:
    """Returns half of the 95 % interval of a mean, by Student's t; 0 for one value.

    >>> interval(np.array([1.0, 2.0, 3.0]))  # 4.303 / sqrt(3)
    2.484
    """
    quantiles = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
    count = len(values)
    return quantiles[count] * values.std(ddof=1) / count**0.5 if count > 1 else 0.0


def rows(records: list[dict[str, Any]]) -> list[Row]:
    """Returns the cases that are there, those that lower the loss most first."""
    bits = {(r['case'], r['seed']): r['splits']['valid']['bits_per_byte'] for r in records}
    found = []
    for case in CASES:
        own = [r for r in records if r['case'] == case.name]
        seeds = [r['seed'] for r in own if (case.reference.name, r['seed']) in bits]
        if not seeds:
            continue
        values = np.array([bits[case.name, seed] for seed in seeds])
        before = np.array([bits[case.reference.name, seed] for seed in seeds])
        train = float(np.mean([r['train_loss'] for r in own]))
        found.append(Row(case.name, values, values - before, train))
    return sorted(found, key=lambda row: row.changes.mean())


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draws a line for each augmentation: each seed, their mean, and its 95 % interval."""
    from matplotlib.figure import Figure

    shown = [row for row in rows(records) if row.changes.any()][::-1]
    if not shown:
        return
    drawing = Figure((7.2, 1.3 + 0.33 * len(shown)), layout='constrained')
    axes = drawing.subplots()
    axes.axvline(0, color=_GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    colors = {'helps': _HELPS, 'neither': _NEITHER, 'harms': _HARMS}
    for height, row in enumerate(shown):
        color, mean = colors[row.verdict], row.changes.mean()
        axes.plot(
            row.changes, [height] * len(row.changes), '|', color=color, markersize=9, alpha=0.7
        )
        axes.errorbar(
            mean, height, xerr=row.interval, fmt='o', color=color, capsize=3, markersize=6, zorder=3
        )
        axes.annotate(
            f'{mean:+.3f}',
            (1.01, height),
            xycoords=('axes fraction', 'data'),
            color=color,
            fontweight='bold',
            fontsize=9,
            va='center',
        )
    axes.set_yticks(range(len(shown)), [row.name for row in shown], fontsize=9)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel('change of validation bits a byte (lower is better)', color=_INK)
    axes.set_title(
        'Augmentation against none, same seeds: each seed, mean, 95 % interval',
        loc='left',
        fontsize=11,
        fontweight='bold',
        color=_INK,
    )
    axes.tick_params(colors=_GREY, labelcolor=_INK, length=2)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color('#bbbbbb')
    drawing.savefig(path, dpi=144)
