"""Pictures of masks: who sees whom, and how much of the square that is."""

import math
from pathlib import Path

import numpy as np

from lm.attention.expression import as_mask
from lm.attention.masks import EMPTY, FULL, Heads, Mask, Range
from lm.plots import Picture

_BLOCK = 64  # Tokens of a block in which pairs are counted.
_PIXELS = 512  # A longer row is drawn with several tokens to a pixel.
_INCHES = 3.2
_INK = '#0072b2'


class Masks(Picture):
    """Pictures of masks.

    Attributes:
        densities: the part of the pairs that each mask allows.
    """

    def __init__(self, figure, densities: list[float]) -> None:
        super().__init__(figure)
        self.densities = densities


def show(
    mask: Mask | str | tuple[Mask | str, ...], length: int = 256, path: str | Path = ''
) -> Masks:
    """Draws who sees whom: queries downwards, keys to the right.

    Args:
        mask: or its text; several, such as the layers of a model, are drawn side by side.
        length: T, tokens on both sides.
        path: a PNG is written there too.

    Returns:
        What a notebook shows as the picture.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    masks = _named(as_mask(mask))
    columns = min(len(masks), 4)
    rows = math.ceil(len(masks) / columns)
    figure = Figure(
        figsize=(columns * _INCHES, rows * (_INCHES + 0.5)), layout='constrained', facecolor='white'
    )
    colors = LinearSegmentedColormap.from_list('ink', ['white', _INK])
    densities = []
    for i, (name, each) in enumerate(masks):
        axes = figure.add_subplot(rows, columns, i + 1)
        share = _shares(each, length)
        densities.append(density(each, length))
        # A pixel that holds any pair must be seen: from a quarter of the ink up.
        axes.imshow(
            np.where(share > 0, 0.25 + 0.75 * share, 0),
            cmap=colors,
            vmin=0,
            vmax=1,
            interpolation='nearest',
            extent=(0, length, length, 0),
        )
        axes.set_title(_wrapped(name), fontsize=8.5)
        axes.set_xlabel(f'key  ({densities[-1]:.1%} of the pairs)', fontsize=8.5)
        axes.set_ylabel('query', fontsize=8.5)
        axes.tick_params(labelsize=7.5, colors='#555555')
        for spine in axes.spines.values():
            spine.set_color('#bbbbbb')
    picture = Masks(figure, densities)
    if path:
        picture.save(path)
    return picture


def density(mask: Mask, length: int) -> float:
    """Returns the part of the pairs of `length` queries and keys that a mask allows, exactly."""
    low = np.arange(0, length, _BLOCK)
    high = np.minimum(low + _BLOCK, length) - 1
    classes = mask.classify(Range(low[:, None], high[:, None]), Range(low, high))
    sizes = high - low + 1
    count = int((sizes[:, None] * sizes)[classes == FULL].sum())
    for i, j in np.argwhere((classes != EMPTY) & (classes != FULL)):
        queries, keys = (np.arange(low[n], high[n] + 1) for n in (i, j))
        count += int(np.sum(mask.allows(queries[:, None], keys)))
    return count / length**2


def _named(mask: Mask | tuple[Mask, ...]) -> list[tuple[str, Mask]]:
    """Returns the masks to be drawn, with their titles."""
    if isinstance(mask, tuple):
        return [
            (f'layer {i + 1}{"," if isinstance(layer, Heads) else ":"} {name}', each)
            for i, layer in enumerate(mask)
            for name, each in _named(layer)
        ]
    if isinstance(mask, Heads):
        return [(f'heads {i + 1}: {part}', part) for i, part in enumerate(mask.masks)]
    return [(str(mask), mask)]


def _shares(mask: Mask, length: int) -> np.ndarray:
    """Returns for each pixel the part of its pairs that the mask allows."""
    size = -(-length // _PIXELS)
    pixels = -(-length // size)
    shares = np.zeros((pixels, pixels))
    keys = np.arange(length)
    starts = np.arange(0, length, size)
    widths = np.diff([*starts, length])
    for i in range(pixels):
        queries = np.arange(i * size, min((i + 1) * size, length))
        allowed = np.broadcast_to(mask.allows(queries[:, None], keys), (len(queries), length))
        shares[i] = np.add.reduceat(allowed.sum(axis=0), starts) / (len(queries) * widths)
    return shares


def _wrapped(text: str, width: int = 40) -> str:
    """Returns the text in lines, broken before an operator."""
    lines = ['']
    for word in text.replace(' | ', '\n| ').replace(' & ', '\n& ').split('\n'):
        if len(lines[-1]) + len(word) > width:
            lines.append('')
        lines[-1] = f'{lines[-1]} {word}'.strip()
    return '\n'.join(lines)
