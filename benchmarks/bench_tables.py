"""Tables of what `edgetune bench` and `edgetune report` are checked by, out of results/agree.json and page.json."""

from __future__ import annotations

from typing import Any


def agree_table(report: dict[str, Any]) -> str:
    """Numbers beside their references."""
    lines = ["| quantity | of | measured | reference | off | may be off |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for row in report["rows"]:
        ours, reference = (
            f"{value:,.0f}" if value >= 1000 else f"{value:.6g}" for value in (row["ours"], row["reference"])
        )
        lines.append(
            f"| {row['quantity']} | {row['of']} | {ours} | {reference} | {row['off']:.1e} | {row['limit']:g} |"
        )
    return "\n".join([*lines, "", f"On {report['provenance']['cores']} cores of {report['provenance']['processor']}."])


def page_table(report: dict[str, Any]) -> str:
    """Weight and opening of a page of many runs."""
    lines = ["| window | read after | first chart drawn after |", "| --- | ---: | ---: |"]
    for window, times in report["opened"].items():
        cells = (
            f"{times[key]['median']:.2f} s ({times[key]['least']:.2f} to {times[key]['most']:.2f})"
            for key in ("read_s", "drawn_s")
        )
        lines.append(f"| {window} | {' | '.join(cells)} |")
    machine = report["provenance"]
    said = (
        f"{report['runs']} runs, {report['models']} models, {report['bytes'] / 2**20:.2f} MiB; median of "
        f"{report['rounds']} rounds (least to most), on {machine['cores']} cores of {machine['processor']}."
    )
    return "\n".join([*lines, "", said])
