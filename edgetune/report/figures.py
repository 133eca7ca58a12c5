"""The one table of what is measured: what each figure is called, its unit, whether more is better. Pure functions.

A figure is known by its path in a report, parts joined with dots: score.json, peak_bytes.512.cold,
labelling.batch.64.8.texts_per_s. The tables of the command line, pages, cards and comparisons all read it here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgetune.metric_names import METRIC_NAMES

Unit = Literal["share", "bytes", "seconds", "nats", "rate", "joules", "plain"]
Better = Literal["more", "less"] | None
Kind = Literal["score", "loss", "size", "memory", "speed", "detail"]
SCORE_NAMES = {**METRIC_NAMES, "loss": "score"}
"""Above the column of scores, which a loss leaves empty."""
LM_EVAL_SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1")
LM_EVAL_LESS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter")
"""Metrics of lm-evaluation-harness: shares, of which more is better, and such of which less is."""
PARTS = {"task": ".+", "metric": "[^.]+", "state": "cold|warm"}
"""What may stand in the place of a name in braces, where it is no number; a task's name may have dots."""


@dataclass(frozen=True)
class Figure:
    """One kind of figure."""

    key: str
    """Its path; parts that vary stand in braces."""
    title: str
    """What people call it, with the same braces."""
    unit: Unit
    better: Better
    kind: Kind = "detail"
    """What a first look is for; a detail comes after all others."""

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """What its paths match."""
        parts = re.split(r"\{(\w+)\}", self.key)  # every second one a name
        names = (
            f"(?P<{part}>{PARTS.get(part, '[0-9]+')})" if place % 2 else re.escape(part)
            for place, part in enumerate(parts)
        )
        return re.compile("".join(names))


FIGURES = (
    *(Figure(f"score.{name}", title, "share", "more", "score") for name, title in SCORE_NAMES.items()),
    *(
        Figure(f"score.lm_eval.{{task}}.{name}", f"lm-eval {{task}}, {name}", "share", "more", "score")
        for name in LM_EVAL_SHARES
    ),
    *(
        Figure(f"score.lm_eval.{{task}}.{name}", f"lm-eval {{task}}, {name}", "plain", "less", "score")
        for name in LM_EVAL_LESS
    ),
    Figure("score.lm_eval.{task}.{metric}", "lm-eval {task}, {metric}", "plain", None, "score"),
    Figure("score.{metric}", "{metric}", "plain", "more", "score"),
    Figure("score", "score", "share", "more", "score"),
    Figure("ece", "calibration error", "share", "less"),
    Figure("fields_f1", "F1 of JSON fields", "share", "more"),
    Figure("valid", "valid JSON", "share", "more"),
    Figure("in_scope_accuracy", "in scope, accepted and right", "share", "more"),
    Figure("out_of_scope_recall", "out of scope, rejected", "share", "more"),
    Figure("loss", "loss", "nats", "less", "loss"),
    Figure("perplexity", "perplexity", "plain", "less"),
    Figure("kl", "KL to the fine-tune", "nats", "less"),
    Figure("kl_to_reference", "KL to the reference", "nats", "less"),
    Figure("same_next_token", "same next token", "share", "more"),
    Figure("same_answers", "same answers", "share", "more"),
    Figure("changed_rows", "answers changed", "share", "less"),
    Figure("first_difference", "first difference", "plain", None),
    Figure("gain_kept", "gain kept", "share", "more"),
    Figure("disk_bytes", "on disk", "bytes", "less", "size"),
    Figure("load_s", "load time", "seconds", "less"),
    Figure("wall_s", "wall time", "seconds", "less"),
    Figure("peak_bytes", "peak memory", "bytes", "less", "memory"),
    Figure("peak_bytes.{context}", "peak memory, context {context}", "bytes", "less"),
    Figure("peak_bytes.{context}.device", "peak memory of the GPU, context {context}", "bytes", "less", "memory"),
    Figure("peak_bytes.{context}.{state}", "peak memory, {state}, context {context}", "bytes", "less", "memory"),
    Figure("device_peak_bytes", "peak memory of the GPU", "bytes", "less"),
    Figure("scoring_peak_bytes", "peak memory, batched", "bytes", "less"),
    Figure("time_to_first_token_s", "first token", "seconds", "less"),
    Figure("time_to_first_token_s.{prompt}", "first token after {prompt} tokens", "seconds", "less"),
    Figure("prefill_tokens_per_s", "prefill tokens/s", "rate", "more"),
    Figure("prefill_tokens_per_s.p95", "prefill tokens/s, p95", "rate", "more"),
    Figure("decode_tokens_per_s", "decode tokens/s", "rate", "more", "speed"),
    Figure("decode_tokens_per_s.p95", "decode tokens/s, p95", "rate", "more"),
    Figure("share_of_bandwidth", "of the memory's bandwidth", "share", "more"),
    Figure("share_of_arithmetic_peak", "of the arithmetic peak", "share", "more"),
    Figure("energy_j_per_token", "energy a token", "joules", "less"),
    Figure("tokens_per_s", "tokens/s", "rate", "more", "speed"),
    Figure("step_tokens_per_s", "tokens/s of a step", "rate", "more"),
    Figure("latency_s", "one text", "seconds", "less", "speed"),
    Figure("p95_s", "one text, p95", "seconds", "less"),
    Figure("labelling", "labelling", "plain", None),
    Figure("labelling.peak_bytes.1.device", "peak memory of the GPU, 1 text", "bytes", "less", "memory"),
    Figure("labelling.peak_bytes.1.{state}", "peak memory, {state}, 1 text", "bytes", "less", "memory"),
    Figure("labelling.peak_bytes.{texts}.device", "peak memory of the GPU, {texts} texts", "bytes", "less", "memory"),
    Figure("labelling.peak_bytes.{texts}.{state}", "peak memory, {state}, {texts} texts", "bytes", "less", "memory"),
    Figure("labelling.batch.{tokens}", "texts of {tokens} tokens", "plain", None),
    Figure("labelling.batch.{tokens}.1.latency_s", "1 text of {tokens} tokens", "seconds", "less", "speed"),
    Figure("labelling.batch.{tokens}.1.texts_per_s", "texts/s, 1 text of {tokens} tokens", "rate", "more"),
    Figure("labelling.batch.{tokens}.{texts}.latency_s", "{texts} texts of {tokens} tokens", "seconds", "less"),
    Figure("labelling.batch.{tokens}.{texts}.texts_per_s", "texts/s, {texts} texts of {tokens} tokens", "rate", "more"),
)
"""In the order in which tables show them; the first whose pattern a path matches is meant."""
OTHERS: dict[str, str] = {
    "classes.ece": "ece",
    "kl": "kl_to_reference",
    **{f"classes.{name}": f"score.{name}" for name in METRIC_NAMES},
}
"""Path in a report of `edgetune bench` -> the figure's own, where that is another."""


@functools.cache
def find(key: str) -> tuple[Figure, str] | None:
    """The figure of a path, and its title with what varies filled in; None for what is no figure."""
    for figure in FIGURES:
        if found := figure.pattern.fullmatch(key):
            return figure, figure.title.format_map({name: _part(text) for name, text in found.groupdict().items()})
    return None


def place(key: str) -> tuple[int, list[int]]:
    """Where tables show a figure that there is: by the order of FIGURES, then by the numbers in its path."""
    known = find(key)
    number = FIGURES.index(known[0]) if known else len(FIGURES)
    return number, [int(part) for part in key.split(".") if part.isdecimal()]


def figures_of(target: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every figure of a target of `edgetune bench` by its path.

    Each is a table: {"value": ...} with its interval, {"median": ...} with least, most and spread, or {"absent":
    reason}, also of all figures whose paths begin so. How something was measured (weights, tokens, rows) is no figure.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for key, value in _flatten(target):
        known = _score_key(value) if key == "score" else OTHERS.get(key, key)
        if find(known):
            found.setdefault(known, value)
        if "p95" in value and find(f"{known}.p95"):
            found[f"{known}.p95"] = {"value": value["p95"]}
        if key == "kl" and "agreement" in value:
            found["same_next_token"] = {"value": value["agreement"]}
    return found


def _score_key(score: Mapping[str, Any]) -> str:
    """What was scored: by a metric of ours or of lm-eval."""
    if "absent" in score:
        return "score"
    task = score.get("lm_eval", {}).get("task")
    return f"score.lm_eval.{task}.{score['metric']}" if task else f"score.{score['metric']}"


def _flatten(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, table) of whatever may be a figure; a plain number is a table of its value."""
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, {"value": value}
        elif isinstance(value, Mapping) and {"absent", "value", "median"} & set(value):
            yield key, value
        elif isinstance(value, Mapping) and "kl" in value:
            yield key, {"value": value["kl"], **value}
        elif isinstance(value, Mapping):
            yield from _flatten(value, key)


def _part(text: str) -> str:
    return f"{int(text):,}" if text.isdecimal() else text
