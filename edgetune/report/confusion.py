"""A confusion matrix as a picture: counts -> PNG."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.figure import figure

_LONGEST_LABEL = 40
"""Characters of a label that are shown."""
_MOST_COUNTED = 80
"""Labels up to which a cell has room for its count."""
_COLOURS = ("Blues", "Oranges")
"""Of right and of wrong answers."""
_GAMMA = 0.5
"""Colours follow the square root of the share, so that one error in twenty rows is seen."""


def draw_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], path: Path, *, title: str) -> None:
    """A PNG of counts (C, C), rows the truth and columns the answers, coloured by their share of the row.

    Right answers are blue and wrong ones orange. The picture grows with C; up to 80 labels the cells show their counts,
    empty ones none. Raises RunError if it cannot be written, ValueError if labels and matrix do not fit.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    if not len(labels) or counts.shape != (len(labels), len(labels)):
        raise ValueError(f"matrix {counts.shape} and {len(labels)} labels: need (C, C) and C labels, at least one")
    inches, points = _cell_size(len(labels))
    side = inches * len(labels)
    empty = figure(path, (side, side), layout=None, bbox_inches="tight", pad_inches=0.25)
    with warnings.catch_warnings(), empty as drawn:
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a label in another script is drawn as boxes
        axes = drawn.add_axes((0.0, 0.0, 1.0, 1.0))
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.pcolormesh(_colours(shares), edgecolors="0.9", linewidth=0.5)
        axes.invert_yaxis()
        _name_axes(axes, labels, points, title)
        if len(labels) <= _MOST_COUNTED:
            _write_counts(axes, counts, shares, inches, points)
        _add_key(drawn, side)


def _cell_size(count: int) -> tuple[float, float]:
    """(inches of a cell, points of the text) that keep a matrix of `count` labels readable."""
    if count <= 20:
        return max(0.55, 2.6 / count), 10.0
    return (0.22, 8.0) if count <= _MOST_COUNTED else (0.13, 6.0)


def _colours(shares: np.ndarray) -> np.ndarray:
    """Shares of a row (C, C) in 0..1 -> colours (C, C, 4); none is white."""
    from matplotlib import colormaps

    right, wrong = (colormaps[name](shares**_GAMMA) for name in _COLOURS)
    colours: np.ndarray = np.where(np.eye(len(shares), dtype=bool)[:, :, None], right, wrong)
    colours[shares == 0] = 1.0
    return colours


def _name_axes(axes: Any, labels: Sequence[str], points: float, title: str) -> None:
    """Write the labels at both sides and the title above."""
    names = [_shorten(label) for label in labels]
    rotation = 0 if len(labels) <= 3 and max(map(len, names)) <= 12 else 90
    places = np.arange(len(labels)) + 0.5
    axes.set_xticks(places, names, rotation=rotation, fontsize=points, parse_math=False)
    axes.set_yticks(places, names, fontsize=points, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_color("0.7")
    size = 11.0 if len(labels) <= 20 else 14.0
    axes.set_xlabel("answer", fontsize=size, labelpad=8)
    axes.set_ylabel("truth", fontsize=size, labelpad=8)
    axes.set_title(title, fontsize=size + 2, pad=12, parse_math=False)


def _shorten(label: str) -> str:
    """A label on one line of bounded length."""
    line = " ".join(label.split())
    return line if len(line) <= _LONGEST_LABEL else f"{line[: _LONGEST_LABEL - 1]}…"


def _write_counts(axes: Any, counts: np.ndarray, shares: np.ndarray, inches: float, points: float) -> None:
    """The count in every cell that is not empty, light on dark; a long one smaller, so that it fits."""
    for row, column in np.argwhere(counts > 0):
        text = str(counts[row, column])
        widest = 72 * inches / (0.75 * len(text))  # a digit of DejaVu Sans is 0.64 of its size wide
        color = "white" if shares[row, column] ** _GAMMA > 0.6 else "0.15"
        place = (column + 0.5, row + 0.5)
        axes.text(*place, text, ha="center", va="center", color=color, fontsize=min(points, widest))


def _add_key(drawn: Any, side: float) -> None:
    """Two slim bars at the right that tell which colour is which share of a row; `side` of the matrix in inches."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import PercentFormatter

    height = min(2.6, side) / side
    for place, (name, meaning) in enumerate(zip(_COLOURS, ("right", "wrong"), strict=True)):
        box = drawn.add_axes((1.0 + (0.25 + 0.17 * place) / side, 1.0 - height, 0.14 / side, height))
        ticks = [0.01, 0.05, 0.2, 0.5, 1.0] if place else []
        bar = drawn.colorbar(ScalarMappable(PowerNorm(_GAMMA, 0.0, 1.0), name), cax=box, ticks=ticks)
        bar.ax.tick_params(labelsize=8, length=0)
        bar.outline.set_visible(False)
        bar.ax.set_xlabel(meaning, rotation=90, fontsize=8)
        if place:
            bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
