"""Keys that a search cannot vary because of model.task, and why: tables of constants."""

from __future__ import annotations

from collections.abc import Mapping

from edgetune.recipe import DECODER_KEYS

FIXED_KEYS = {
    "classify.multi_label": "all trials share one task",
    "classify.label_separator": "all trials share one task",
    "classify.out_of_scope_label": "all trials share one task",
    "classify.positive_label": "scores of other labels cannot be compared",
}
"""Of the tables of single tasks, those that are the same in all trials."""
IDLE_KEYS: Mapping[str, Mapping[str, str]] = {
    "generation": {},
    "classification": dict.fromkeys(DECODER_KEYS, "has no effect on a classifier"),
}
"""Task -> keys that change nothing of its models."""
