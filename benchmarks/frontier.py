"""Draws banking77.png: test accuracy over size on disk, ours from results/banking77.json beside published ones.

python -m benchmarks.frontier
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from benchmarks.readme import RESULTS

PUBLISHED = (("BERT-large, tuned", 93.66, 1341.0), ("ConveRT", 93.01, 59.0))
"""Name, test accuracy in percent with all training rows, and megabytes: of 335 M float32 weights, and as published."""
SOURCE = (
    "Squares: Casanueva et al. 2020, Efficient Intent Detection with Dual Sentence Encoders, arXiv:2003.04807,\n"
    "table 2, full data. Sizes: BERT-large in float32; ConveRT, 8-bit embeddings, as in arXiv:1911.03688."
)
OURS = (("int4 bundle", "EdgeTune int4 bundle"), ("merged", "the same, merged, float32"))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "banking77.png")
def main(out: Path) -> None:
    """Draw the picture."""
    from matplotlib.figure import Figure

    report = json.loads((RESULTS / "banking77.json").read_text(encoding="utf-8"))
    found = report["rows_a_label"]["all"]
    sizes = {"int4 bundle": found["bundle_bytes"] / 1e6, "merged": found["merged_bytes"] / 1e6}
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for key, name in OURS:
        scores = found["accuracy"][key]
        mean, least, most = (100 * scores[part] for part in ("mean", "least", "most"))
        axes.errorbar(sizes[key], mean, [[mean - least], [most - mean]], fmt="o", color="tab:blue", capsize=4)
        axes.annotate(
            f"{name}\n{mean:.2f} %, {sizes[key]:.0f} MB",
            (sizes[key], mean),
            (8, 8 if key == "int4 bundle" else -30),
            textcoords="offset points",
        )
    for name, accuracy, size in PUBLISHED:
        axes.plot(size, accuracy, "s", color="tab:gray")
        axes.annotate(f"{name}\n{accuracy:.2f} %", (size, accuracy), (8, -22), textcoords="offset points", color="0.3")
    axes.set_xscale("log")
    axes.set_xlim(8, 12000)
    axes.margins(y=0.3)
    axes.set_xlabel("size on disk, MB")
    figure.text(0.01, -0.01, SOURCE, fontsize=7, color="0.3", va="top")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"BANKING77: mean of {report['seeds']['all']} seeds, bars from least to most; squares as published")
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(out, bbox_inches="tight")
    click.echo(f"{out}")


if __name__ == "__main__":
    main()
