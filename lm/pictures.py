"""Runs as pictures, in a notebook."""

import json
from pathlib import Path

from lm import report
from lm.errors import InputError
from lm.plots import PALETTE, Picture, smooth


def show(*workdirs: str | Path, path: str | Path = '') -> Picture:
    """Draws the curves of runs: the loss of training and validation, and the learning rate.

    Args:
        workdirs: of runs that have begun; several are drawn into the same axes.
        path: a PNG is written there too.

    Returns:
        What a notebook shows as the picture.

    Raises:
        InputError: there is no run in a workdir.
    """
    from matplotlib.figure import Figure

    if not workdirs:
        raise InputError("show needs the workdir of a run: lm.show('runs/quickstart').")
    figure = Figure(figsize=(9.6, 3.6), layout='constrained', facecolor='white')
    loss, rate = figure.subplots(1, 2, width_ratios=(2, 1))
    for i, workdir in enumerate(map(Path, workdirs)):
        found, color = report.curves(workdir), PALETTE[i % len(PALETTE)][0]
        if 'train/loss' not in found:
            raise InputError(f"there is no run in '{workdir}': nothing was logged there yet.")
        loss.plot(*zip(*found['train/loss'], strict=True), color=color, alpha=0.25, linewidth=0.8)
        loss.plot(
            *zip(*smooth(found['train/loss']), strict=True), color=color, label=_label(workdir)
        )
        if 'valid/loss' in found:
            loss.plot(*zip(*found['valid/loss'], strict=True), 'o--', color=color, markersize=4)
        rate.plot(*zip(*found['train/learning_rate'], strict=True), color=color)
    _finish(loss, 'loss, nats a token (line: training, points: validation)')
    _finish(rate, 'learning rate')
    loss.legend(frameon=False, fontsize=9)
    picture = Picture(figure)
    if path:
        picture.save(path)
    return picture


def _label(workdir: Path) -> str:
    """Returns the run's name, and the perplexity that it reached, if it has ended."""
    file = workdir / 'report.json'
    splits = json.loads(file.read_text())['splits'] if file.exists() else {}
    reached = [f'{split} perplexity {found["perplexity"]:.2f}' for split, found in splits.items()]
    return ', '.join([workdir.name, *reached[:1]])


def _finish(axes, title: str) -> None:
    axes.set_title(title, fontsize=9.5, loc='left')
    axes.set_xlabel('step', fontsize=9)
    axes.tick_params(labelsize=8, colors='#555555')
    axes.grid(color='#e6e6e6', linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
