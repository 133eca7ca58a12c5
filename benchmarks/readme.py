"""Fills the measured parts of README.md and benchmarks/README.md from results/*.json: no number is typed by hand.

python -m benchmarks.readme            # rewrite
python -m benchmarks.readme --check    # exit 1 if a part differs from its JSON (a test does the same)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGES = (REPOSITORY / "README.md", REPOSITORY / "benchmarks" / "README.md")


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if a page is out of date.")
def main(check: bool) -> None:
    """Rewrite the measured parts of both pages."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text and check:
            raise click.ClickException(f"{page.name} differs from benchmarks/results; run python -m benchmarks.readme")
        page.write_text(filled, encoding="utf-8")


def fill(text: str) -> str:
    """The page with each part between `<!-- begin NAME -->` and `<!-- end NAME -->` made anew."""
    for name, part in PARTS.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if pattern.search(text):
            body = part(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
            text = pattern.sub(lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text)
    return text


def run_table(summary: dict[str, Any]) -> str:
    """The table of a run, and what the run cost."""
    machine = summary["provenance"]
    return (
        f"{summary['markdown']}\n\n"
        f"{summary['rows']} test rows, {summary['confidence']:.0%} bootstrap intervals; "
        f"{summary['wall_s'] / 60:.1f} minutes and {summary['peak_bytes'] / 1024**3:.2f} GiB at the peak "
        f"on {machine['cores']} cores of {machine['processor']}."
    )


def train_table(report: dict[str, Any]) -> str:
    """Training speed, peers side by side."""
    lines = ["| trainer | trained tokens/s | peak memory | eval loss |", "| --- | ---: | ---: | ---: |"]
    for name, row in report["contestants"].items():
        speed = row["trained_tokens_per_s"]
        lines.append(
            f"| {name} | {speed['median']:,.0f} ({speed['least']:,.0f} to {speed['most']:,.0f}) "
            f"| {row['peak_bytes']['median'] / 2**20:,.0f} MiB | {row['eval_loss']['median']:.4f} |"
        )
    ratio = report["ratio"]
    lines.append("")
    lines.append(
        f"Median ratio to {report['peer']}: {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) over "
        f"{report['rounds']} rounds of {report['rows']} rows in turn, on {report['provenance']['cores']} cores of "
        f"{report['provenance']['processor']}."
    )
    return "\n".join(lines)


def decode_table(report: dict[str, Any]) -> str:
    """Decode speed, peers side by side."""
    lines = [
        "| runtime | decode tokens/s | x Q4_K_M | prefill tokens/s | peak memory | file | share of bandwidth |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in report["rows"].items():
        lines.append(
            f"| {name} | {row['decode_tokens_per_s']['median']:,.0f} | "
            f"{report['decode_ratio_to_q4_k_m'][name]['median']:.2f} | {row['prefill_tokens_per_s']['median']:,.0f} | "
            f"{row['peak_bytes'] / 2**20:,.0f} MiB | {row['file_bytes'] / 2**20:,.1f} MiB | "
            f"{row['share_of_bandwidth']:.0%} |"
        )
    lines.append("")
    lines.append(
        f"Batch 1, prompt {report['prompt_tokens']}, {report['new_tokens']} new tokens, median of "
        f"{report['rounds']} rounds in turn, {report['threads']} threads of "
        f"{report['provenance']['processor']}; memory read at "
        f"{report['read_bandwidth_bytes_per_s']['best'] / 1e9:.1f} GB/s."
    )
    return "\n".join(lines)


def int4_loss_table(report: dict[str, Any]) -> str:
    """Loss rise of published weights on each grid."""
    names = list(report["models"])
    head = [f"{name}, {method}" for name in names for method in ("rtn", "search")]
    lines = [f"| grid | {' | '.join(head)} |", "| --- |" + " ---: |" * len(head)]
    rises: dict[str, dict[str, str]] = {}
    for name, model in report["models"].items():
        for grid in model["grids"]:
            symmetry = "symmetric" if grid["symmetric"] else "asymmetric"
            label = f"int{grid['bits']} block {grid['block_size']} {symmetry}"
            rise = grid["loss"] - model["float32_loss"]
            rises.setdefault(label, {})[f"{name}, {grid['method']}"] = f"{rise:+.4f}"
    lines += [f"| {label} | {' | '.join(row[column] for column in head)} |" for label, row in rises.items()]
    whole = ", ".join(f"{name} {model['float32_loss']:.4f}" for name, model in report["models"].items())
    lines += ["", f"Nats per token over {report['tokens']:,} tokens, against float32: {whole}."]
    return "\n".join(lines)


PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "quickstart": run_table,
    "nano-snips": run_table,
    "train_throughput": train_table,
    "decode": decode_table,
    "decode_nano": decode_table,
    "int4_loss": int4_loss_table,
}

if __name__ == "__main__":
    main()
