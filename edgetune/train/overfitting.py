"""Overfitting: told by the gap between training and eval loss, and what is raised against it. Pure; State keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Action = Literal["warn", "dropout", "weight_decay"]
RISE = 0.02
"""Share by which the eval loss is above its best, at least: less is the flat end of a curve."""
EVALUATIONS = 2
"""So many evaluations in a row at which the gap has opened are overfitting."""
DROPOUT_STEP, MOST_DROPOUT = 0.1, 0.5
LEAST_DECAY, DECAY_FACTOR, MOST_DECAY = 0.01, 3.0, 1.0


@dataclass(frozen=True)
class Finding:
    """Overfitting, found after an evaluation. Losses in nats per trained token (or text)."""

    step: int
    eval_loss: float
    best_eval_loss: float
    train_loss: float
    best_train_loss: float
    """Training loss when the eval loss was at its best."""
    raised: str | None = None
    """What was raised, "dropout" or "weight_decay"; None where only a warning was asked for, or it is at its most."""
    to: float | None = None


@dataclass(frozen=True)
class Overfitting:
    """What is known about it after an evaluation."""

    best_eval_loss: float | None = None
    best_train_loss: float = 0.0
    evaluations: int = 0
    """In a row at which the gap had opened, since the last finding."""
    findings: tuple[Finding, ...] = ()
    dropout: float | None = None
    """Of the adapter, once it was raised."""
    weight_decay: float | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Overfitting:
        """As dataclasses.asdict gave it."""
        return cls(**{**values, "findings": tuple(Finding(**item) for item in values.get("findings", ()))})


def after_evaluation(known: Overfitting, step: int, *, train_loss: float, eval_loss: float) -> Overfitting:
    """What is known after one more evaluation; a new finding where the gap has been open often enough.

    The gap has opened where the eval loss is above its best by RISE while the training loss is below what it was then:
    what is still learned helps the training rows alone. Neither loss is compared with the other, for dropout, label
    smoothing and harder rows set them apart from the start.
    """
    if known.best_eval_loss is None or eval_loss < known.best_eval_loss:
        return dataclasses.replace(known, best_eval_loss=eval_loss, best_train_loss=train_loss, evaluations=0)
    is_open = eval_loss > (1 + RISE) * known.best_eval_loss and train_loss < known.best_train_loss
    if not is_open:
        return dataclasses.replace(known, evaluations=0)
    if known.evaluations + 1 < EVALUATIONS:
        return dataclasses.replace(known, evaluations=known.evaluations + 1)
    found = Finding(step, eval_loss, known.best_eval_loss, train_loss, known.best_train_loss)
    return dataclasses.replace(known, evaluations=0, findings=(*known.findings, found))


def raised(known: Overfitting, action: Action, *, dropout: float, weight_decay: float) -> Overfitting:
    """The last finding with what is done about it, from the dropout and weight decay that hold now."""
    levels = {
        "dropout": max(dropout, min(MOST_DROPOUT, dropout + DROPOUT_STEP)),
        "weight_decay": max(weight_decay, min(MOST_DECAY, max(LEAST_DECAY, weight_decay * DECAY_FACTOR))),
    }
    now = {"dropout": dropout, "weight_decay": weight_decay}
    if action == "warn" or levels[action] <= now[action]:
        return known
    level = round(levels[action], 6)
    last = dataclasses.replace(known.findings[-1], raised=action, to=level)
    known = dataclasses.replace(known, findings=(*known.findings[:-1], last))
    if action == "dropout":
        return dataclasses.replace(known, dropout=level)
    return dataclasses.replace(known, weight_decay=level)
