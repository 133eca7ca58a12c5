"""Scores in words, below the tables of `edgetune run` and `edgetune evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAME_ROWS = "is_calibrated_on_scored_rows"
"""What scores of labels say, and no others."""
CLASS_SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1", "ece": "calibration error"}
REJECTION_SCORES = {
    "in_scope_accuracy": "in-scope accuracy",
    "out_of_scope_recall": "out-of-scope recall",
    "auroc": "AUROC",
    "false_accept_rate": "false-accept rate",
}


def describe(summary: Mapping[str, Any], score: Mapping[str, Any] | None = None) -> str:
    """How the table's numbers were measured, for people; `score` is that of the last target, needed if of labels."""
    start = f"{summary['rows']} rows; interval: {summary['confidence']:.0%}, bootstrap; loss: nats per "
    memory = "peak memory: " + ("of the GPU, for a model on it, else of " if summary.get("is_on_gpu") else "")
    if score and SAME_ROWS in score:
        same = " (the very rows scored, for want of data.test)" if score[SAME_ROWS] else ""
        return (
            f"{start}text, probabilities calibrated on the eval rows{same}; {memory}a fresh process that loads "
            "the model and labels one text at a time, whose median time the last column is"
        )
    return (
        f"{start}trained token; {memory}a fresh process that loads the model and answers one prompt at a time; "
        "tokens/s: decoding one prompt at a time"
    )


def check_line(check: Mapping[str, Any]) -> str:
    """One check of a verification that did not refuse the bundle."""
    mark = "ok  " if check["passed"] else "note"
    return f"{mark} {check['name']}: {check['value']:.3g}, limit {check['limit']:.3g} ({check['detail']})"


def result_lines(name: str, score: Mapping[str, Any]) -> list[str]:
    """What a target scored beside the table, for people: fields, or scores of labels and of rejection."""
    lines = []
    if fields := score.get("fields"):
        low, high = fields["f1_interval"]
        lines.append(
            f"fields of {name}: F1 {fields['f1']:.1%} ({low:.1%} to {high:.1%}), "
            f"precision {fields['precision']:.1%}, recall {fields['recall']:.1%}, valid JSON {fields['valid']:.1%}"
        )
    if check := score.get("check"):
        lines.append(
            f"check of {name}: {check['timed_out']} rows ran out of time, {check['raised']} raised"
            + (f", the first: {check['first_error']}" if check["first_error"] else "")
        )
    if classes := score.get("classes"):
        lines.append(f"{name}: {_shares(classes, CLASS_SCORES)}")
    if rejection := score.get("rejection"):
        lines.append(f"{name}, unknown below {rejection['threshold']:.3f}: {_shares(rejection, REJECTION_SCORES)}")
    return lines


def _shares(values: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Each score that there is, with its interval."""
    shown = []
    for key, name in names.items():
        if values[key] is not None:
            low, high = values[f"{key}_interval"] or (values[key], values[key])
            form = ".3f" if key == "auroc" else ".1%"
            shown.append(f"{name} {values[key]:{form}} ({low:{form}} to {high:{form}})")
    return ", ".join(shown)
