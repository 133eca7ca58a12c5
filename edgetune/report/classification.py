"""What reports and cards say of a classifier in particular: see report/task.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.runtime.bundle import Bundle

MOST_NAMED = 20
"""Labels that a card names."""


def abilities(bundle: Bundle) -> str | None:
    """The labels that it tells apart."""
    labels = bundle.classifier_format.labels
    return f"{len(labels)} labels: {', '.join(labels[:MOST_NAMED])}{', ...' if len(labels) > MOST_NAMED else ''}."


def refusals(bundle: Bundle) -> str | None:
    """When a text is unknown to it."""
    threshold = bundle.classifier_format.threshold
    return None if threshold is None else f'It answers "unknown" below a probability of {threshold:.3f}.'


def details(score: Any, results: Path, *, title: str) -> Mapping[str, Any] | None:
    """Scores label by label; also draws results/confusion.png where the labels are few enough to look at."""
    from edgetune.report.confusion import draw_confusion

    classes = score.classes
    if classes["confusion"] is not None:
        labels = [item["label"] for item in classes["per_class"]]
        draw_confusion(classes["confusion"], labels, results / "confusion.png", title=title)
    kept = ("temperature", "rejection", "is_calibrated_on_scored_rows")
    return {**{name: getattr(score, name) for name in kept}, **classes}
