"""The metrics of [evaluate], by name. Apart from the recipe, so that the command line starts without it."""

from __future__ import annotations

from typing import Literal, get_args

TextMetric = Literal["exact_match", "json", "final_number", "token_f1", "rouge_l", "chrf", "check", "loss"]
LabelMetric = Literal["accuracy", "macro_f1", "f1"]
MetricName = Literal[TextMetric, LabelMetric]
TEXT_METRICS: tuple[str, ...] = get_args(TextMetric)
LABEL_METRICS: tuple[str, ...] = get_args(LabelMetric)
METRIC_NAMES = {
    "exact_match": "exact match",
    "json": "same JSON",
    "final_number": "same number",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "check": "passes check",
    "loss": "loss",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "f1": "F1",
}
"""Metrics as people read them."""
