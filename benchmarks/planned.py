"""Draws planner.png: the planner's peak over the measured one, from results/planner.json and results/gpu.json.

python -m benchmarks.planned
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from benchmarks.readme import RESULTS

SOURCES = (("planner", "rows", "CPU, resident memory", "o"), ("gpu", "planner", "GPU, allocated memory", "s"))
"""Results file, its rows, what it is, marker."""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "planner.png", show_default=True)
def main(out: Path) -> None:
    """Draw the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    ends: list[float] = []
    for name, rows, title, marker in SOURCES:
        found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))[rows]
        measured = [row["peak_mib"] for row in found]
        axes.plot(measured, [row["planned_mib"] for row in found], marker, alpha=0.7, label=f"{title} ({len(found)})")
        ends += measured
    line = [min(ends) * 0.8, max(ends) * 1.25]
    axes.plot(line, line, color="0.3", linewidth=1)
    axes.fill_between(line, [0.9 * end for end in line], [1.1 * end for end in line], color="0.5", alpha=0.2, lw=0)
    axes.set(xscale="log", yscale="log", xlim=line, ylim=line, xlabel="measured peak, MiB", ylabel="planned peak, MiB")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    axes.set_title("Planned against measured memory of training; the band is 10 % either way")
    axes.legend(loc="upper left")
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(out, bbox_inches="tight")
    click.echo(f"{out}")


if __name__ == "__main__":
    main()
