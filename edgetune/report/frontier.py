"""Loss against bytes as a picture: what can be had for which size, and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetune.figure import figure


def draw_frontier(points: Sequence[tuple[int, float, bool, bool]], path: Path, *, title: str) -> None:
    """A PNG of (bytes, loss, whether on the front, whether chosen) of each candidate. Raises RunError."""
    with figure(path, (7.0, 4.2)) as drawn:
        axes = drawn.add_subplot()
        mib = [size / 1024**2 for size, *_ in points]
        losses = [loss for _, loss, *_ in points]
        axes.scatter(mib, losses, s=22, color="tab:gray", alpha=0.5, label="candidate", linewidths=0)
        front = sorted((size / 1024**2, loss) for size, loss, on_front, _ in points if on_front)
        if front:
            xs, ys = zip(*front, strict=True)
            axes.step(xs, ys, where="post", color="tab:blue", linewidth=1.2)
            axes.scatter(xs, ys, s=30, color="tab:blue", label="front", zorder=3)
        for size, loss, _, is_chosen in points:
            if is_chosen:
                axes.scatter([size / 1024**2], [loss], s=110, marker="*", color="tab:orange", label="chosen", zorder=4)
        axes.set(xlabel="weights (MiB)", ylabel="eval loss before repair (nats per trained token)", title=title)
        if losses and max(losses) > 3 * min(losses) > 0:
            axes.set_yscale("log")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
