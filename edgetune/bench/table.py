"""A bench report as aligned text for a terminal: a line for each quantity, a column for each target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edgetune.bench.labelling import BATCHES, LENGTHS
from edgetune.bench.noise import is_absent
from edgetune.report.table import SCORE_NAMES

ABSENT = "-"
MIB = 1024**2
Form = Callable[[float], str]


def mib(size_bytes: float) -> str:
    """Bytes in MiB."""
    return f"{size_bytes / MIB:,.1f} MiB" if size_bytes < 100 * MIB else f"{size_bytes / MIB:,.0f} MiB"


def time_of(seconds: float) -> str:
    """Seconds, or milliseconds where they are few."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.1f} ms"


def rate(per_s: float) -> str:
    """Tokens a second."""
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:,.1f}"


def _share(value: float) -> str:
    """A share as percent; a task of lm-eval may have a number of another kind."""
    return f"{value:.1%}" if -0.5 <= value <= 1.5 else f"{value:.4g}"


def plain(report: Mapping[str, Any]) -> str:
    """The table, then what training cost, and why something is absent, if anything is."""
    targets: Sequence[Mapping[str, Any]] = report["targets"]
    lines = [["", *(target["name"] for target in targets)]]
    reasons: dict[str, list[str]] = {}
    for label, cells in _lines(report):
        lines.append([label, *(text for text, _ in cells)])
        for _, reason in cells:
            if reason:
                reasons.setdefault(reason, []).append(label)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    notes = [f"{ABSENT} {', '.join(dict.fromkeys(labels))}: {reason}" for reason, labels in reasons.items()]
    trained = list(training_lines(report))
    return "\n".join([*table, *([""] if notes or trained else []), *trained, *notes])


Cell = tuple[str, str]
"""What is shown, and why nothing is, or ""."""


def _lines(report: Mapping[str, Any]) -> Iterator[tuple[str, list[Cell]]]:
    """Every line of the table: its label, its cells. What no target has by its nature has no line."""
    targets, data = report["targets"], report["data"]
    tasks = {target["task"] for target in targets}
    name = SCORE_NAMES.get(data["metric"], data["metric"]) if data else "score"
    if report.get("task"):
        name = f"lm-eval {report['task']['name']}"
    yield name, [_value(target["score"], _share) for target in targets]
    yield "loss", [_value(target["loss"], "{:.4f}".format) for target in targets]
    if "generation" in tasks:
        yield "perplexity", [_value(target["perplexity"], "{:.3f}".format) for target in targets]
        yield f"KL to {report['reference']}", [_plain(target["kl"], "kl", "{:.5f}".format) for target in targets]
    yield "on disk", [(mib(target["disk_bytes"]), "") for target in targets]
    yield "load time", [_noisy(target["load_s"], time_of) for target in targets]
    if "generation" in tasks:
        yield from _generation_lines(targets, report["settings"])
    if "classification" in tasks:
        yield from _labelling_lines(targets)


def _generation_lines(
    targets: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> Iterator[tuple[str, list[Cell]]]:
    """Of decoders."""
    for context in settings["contexts"]:
        for state in ("cold", "warm"):
            cells = [_noisy(_at(target["peak_bytes"], str(context), state), mib) for target in targets]
            yield f"peak memory, {state}, context {context:,}", cells
    for prompt in settings["prompts"]:
        cells = [_noisy(_at(target["time_to_first_token_s"], str(prompt)), time_of) for target in targets]
        yield f"first token after {prompt:,}", cells
    for key, label in (("prefill_tokens_per_s", "prefill tokens/s"), ("decode_tokens_per_s", "decode tokens/s")):
        yield label, [_noisy(target[key], rate) for target in targets]
        yield f"{label}, p95", [_plain(target[key], "p95", rate) for target in targets]
    yield "of the memory's bandwidth", [_plain(t["share_of_bandwidth"], "value", "{:.0%}".format) for t in targets]
    yield "of the arithmetic peak", [_plain(t["share_of_arithmetic_peak"], "value", "{:.0%}".format) for t in targets]
    yield "energy a token", [_plain(t["energy_j_per_token"], "median", "{:.3f} J".format) for t in targets]


def _labelling_lines(targets: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Cell]]]:
    """Of encoders."""
    for size in (BATCHES[0], BATCHES[-1]):
        for state in ("cold", "warm"):
            cells = [_noisy(_at(target["labelling"], "peak_bytes", str(size), state), mib) for target in targets]
            yield f"peak memory, {state}, {_texts(size)}", cells
    for length in LENGTHS:
        for size in BATCHES:
            found = [_at(target["labelling"], "batch", str(length), str(size)) for target in targets]
            yield f"{_texts(size)} of {length} tokens", [_noisy(_at(item, "latency_s"), time_of) for item in found]
            if size > 1:
                yield "  texts/s", [_noisy(_at(item, "texts_per_s"), rate) for item in found]


def _texts(count: int) -> str:
    return "1 text" if count == 1 else f"{count} texts"


def _at(value: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The value under some keys, or what is absent on the way to it."""
    for key in keys:
        if is_absent(value):
            break
        value = value[key]
    return value


def training_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What the training of each run cost, below the table."""
    for item in report["training"]:
        cells = [
            _plain(item["peak_bytes"], "value", mib),
            _plain(item["tokens_per_s"], "value", rate),
            _plain(item["wall_s"], "value", lambda seconds: f"{seconds / 60:.1f} minutes"),
        ]
        words = [f"{cells[0][0]} at the peak", f"{cells[1][0]} tokens/s", cells[2][0]]
        reason = next((reason for _, reason in cells if reason), "")
        yield f"training of {item['run']}: {reason or ', '.join(words)}"


def _plain(value: Mapping[str, Any], key: str, form: Form) -> Cell:
    """One number."""
    return (ABSENT, value["absent"]) if is_absent(value) else (form(value[key]), "")


def _value(value: Mapping[str, Any], form: Form) -> Cell:
    """A number with its bootstrap interval."""
    if is_absent(value):
        return ABSENT, value["absent"]
    if value["interval"] is None:
        return form(value["value"]), ""
    low, high = value["interval"]
    return f"{form(value['value'])} ({form(low)} to {form(high)})", ""


def _noisy(value: Mapping[str, Any], form: Form) -> Cell:
    """A median with the spread between processes."""
    if is_absent(value):
        return ABSENT, value["absent"]
    spread = "" if value["spread"] is None else f" ±{value['spread'] / 2:.1%}"
    return f"{form(value['median'])}{spread}", ""
