"""Pictures by matplotlib, drawn without a screen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from edgetune.files import atomic_file


@contextmanager
def figure(
    out: Path,
    inches: tuple[float, float],
    *,
    dpi: int = 120,
    layout: Literal["constrained"] | None = "constrained",
    **saving: Any,
) -> Iterator[Any]:
    """An empty matplotlib figure, (width, height) in inches; what the block draws on it is written to `out` as a PNG.

    `saving`: what else matplotlib's savefig takes. A block that raises leaves no file. Raises RunError if it cannot be
    written, ModuleNotFoundError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=inches, dpi=dpi, layout=layout)
    FigureCanvasAgg(drawn)
    yield drawn
    with atomic_file(out) as temporary:
        drawn.savefig(temporary, format="png", **saving)
