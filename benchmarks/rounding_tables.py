"""Tables of what rounding costs and what wins it back, from results/int4_loss.json, methods.json and repair.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def int4_loss_table(report: dict[str, Any]) -> str:
    """Loss rise of published weights on each grid."""
    names = list(report["models"])
    head = [f"{name}, {method}" for name in names for method in ("rtn", "search")]
    lines = [f"| grid | {' | '.join(head)} |", "| --- |" + " ---: |" * len(head)]
    rises: dict[str, dict[str, str]] = {}
    for name, model in report["models"].items():
        for grid in model["grids"]:
            symmetry = "symmetric" if grid["symmetric"] else "asymmetric"
            small_head = "" if grid["head_bits"] == 8 else f", int{grid['head_bits']} head"
            label = f"int{grid['bits']} block {grid['block_size']} {symmetry}{small_head}"
            rise = grid["loss"] - model["float32_loss"]
            rises.setdefault(label, {})[f"{name}, {grid['method']}"] = f"{rise:+.4f}"
    lines += [f"| {label} | {' | '.join(row[column] for column in head)} |" for label, row in rises.items()]
    whole = ", ".join(f"{name} {model['float32_loss']:.4f}" for name, model in report["models"].items())
    lines += ["", f"Nats per token over {report['tokens']:,} tokens, against float32: {whole}."]
    return "\n".join(lines)


def methods_table(report: dict[str, Any]) -> str:
    """Loss of a fine-tuned decoder on each grid, by the method of rounding."""
    names = list(dict.fromkeys(row["method"] for row in report["rows"]))
    grids: dict[str, dict[str, dict[str, Any]]] = {}
    for row in report["rows"]:
        symmetry = "symmetric" if row["symmetric"] else "asymmetric"
        grids.setdefault(f"{row['precision']} block {row['block_size']} {symmetry}", {})[row["method"]] = row
    lines = [f"| grid | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for grid, rows in grids.items():
        lines.append(f"| {grid} | {_losses(rows, names, 'loss')} |")
        if any(row["repaired_loss"] is not None for row in rows.values()):
            steps = report["repair_steps"]
            lines.append(f"| the same, {steps} steps of repair | {_losses(rows, names, 'repaired_loss')} |")
    lines += [
        "",
        f"Nats per trained token of merged `{report['base']}` on {report['eval_rows']} eval rows; in float32 "
        f"{report['float32_loss']:.4f}. gptq and awq saw {report['calibration_rows']:,} training rows.",
    ]
    return "\n".join(lines)


def _losses(rows: dict[str, dict[str, Any]], names: list[str], key: str) -> str:
    return " | ".join(f"{rows[name][key]:.4f}" if name in rows else "-" for name in names)


def repair_table(report: dict[str, Any]) -> str:
    """One table a task: what each way to an int4 bundle scores on the eval rows."""
    lines = []
    for task, values in report["tasks"].items():
        has_score = values["metric"] != "loss"
        columns = ["score", "loss", "seconds"] if has_score else ["loss", "seconds"]
        lines += [f"**{task}**, {values['rows']} eval rows", "", f"| way | {' | '.join(columns)} |"]
        lines.append("| --- |" + " ---: |" * len(columns))
        for name, way in values["ways"].items():
            cells = [_over_seeds(way, "score", "{:.1%}")] if has_score else []
            cells += [_over_seeds(way, "loss", "{:.4f}"), _over_seeds(way, "quantize_s", "{:.0f}")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    machine = report["provenance"]
    lines.append(
        "Nats per trained token. Of several seeds the mean, with the least and the most; seconds to the bundle's "
        f"integers, on {machine['cores']} cores of {machine['processor']}, which other work shared; at commit "
        f"{machine['commit'][:7]}."
    )
    return "\n".join(lines)


def _over_seeds(way: dict[str, Any], key: str, form: str) -> str:
    values: Sequence[float] = [found[key] for found in way["seeds"] if found[key] is not None]
    if not values:
        return "-"
    spread = f" ({form.format(min(values))} to {form.format(max(values))})" if min(values) < max(values) else ""
    return form.format(sum(values) / len(values)) + spread
