"""The tables of results/survival.json."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

COLUMNS = ("score", "gain kept", "of the loss", "KL", "same answers", "file", "bits a weight", "peak memory", "speed")
HEADER = (f"| on the device | {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * len(COLUMNS)}")


def survival_table(report: dict[str, Any]) -> str:
    """One table a task: what each way to the device keeps of the fine-tune."""
    found: list[str] = []
    for task, values in report["tasks"].items():
        found += [f"**{task}**{_about(values, report['provenance'])}", "", *HEADER]
        found += [*map(_row, values["rows"]), ""]
    if report.get("three_bits"):
        found += [f"No row has three bits, for the runtime computes none: {report['three_bits']}", ""]
    found.append(
        "Gain kept: (it - base) / (fine-tune - base) on the same test rows, 95% paired bootstrap interval. KL: nats a "
        "token from the fine-tune's probabilities. Same answers: the share of rows with the fine-tune's answer, letter "
        "by letter. Each in a fresh process, one after the other."
    )
    return "\n".join(found)


def _about(values: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    """What stands beside a task's name: when, at which commit and where it was measured, and what to know of it."""
    machine = values.get("provenance", shared)
    measured = time.strftime("%Y-%m-%d", time.gmtime(machine["started_unix"]))
    parts = [
        f"measured {measured} at commit {machine['commit'][:7]} on {machine['cores']} cores of {machine['processor']}"
    ]
    parts += [f"load average {values['load_at_start']:.1f} at the start"] if "load_at_start" in values else []
    parts += [values["note"]] if values.get("note") else []
    return f" ({'; '.join(parts)})"


def _row(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['name']} | {row['failed'].replace('|', '/')} |{' - |' * 8}"
    score = "-" if row["score"] is None else f"{row['score']:.1%}"
    if row["interval"]:
        score += f" ({row['interval'][0]:.1%} to {row['interval'][1]:.1%})"
    kl = "-" if row["kl"] is None else f"{row['kl']:.4f}"
    same = "-" if row.get("same_answers") is None else f"{row['same_answers']:.1%}"
    return (
        f"| {row['name']} | {score} | {_gain(row['gain_kept_score'])} | {_gain(row['gain_kept_loss'])} | {kl} | {same} "
        f"| {row['file_bytes'] / 2**20:.2f} MiB | {row['bits_per_weight']:.1f} "
        f"| {row['peak_bytes'] / 2**20:,.0f} MiB | {_speed(row)} |"
    )


def _speed(row: Mapping[str, Any]) -> str:
    if row.get("latency_s") is not None:
        return f"{row['latency_s'] * 1e3:.1f} ms a text"
    return "-" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f} tokens/s"


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None or gain["kept"] is None:
        return "-"
    low, high = gain["interval"]
    return f"{gain['kept']:.3f} ({low:.3f} to {high:.3f})"
