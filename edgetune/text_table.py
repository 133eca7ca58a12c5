"""Tables as aligned text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of equally many cells as one text: the first column starts at the left, the others end below each other.

    Two blanks stand between columns, none at the end of a line. Raises ValueError for lines of different lengths.
    """
    columns = [*zip(*lines, strict=True)]
    widths = [max(map(len, cells)) for cells in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
