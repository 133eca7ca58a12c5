"""Adapters of encoders: a head over labels belongs to them, and of the base's own pooler only one that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.model.classifier import HEAD, SPEC, check_pooling, drop_unused_pooler, read_spec
from edgetune.recipe import Recipe

FILES: tuple[str, ...] = (HEAD, SPEC)


def check_base(base: Path, recipe: Recipe) -> None:
    """Raises ModelError if the base's own pooler is asked for and its files hold none."""
    check_pooling(base, recipe.classify.pooling)


def drop_unused(model: Any, recipe: Recipe) -> None:
    """Take the pooler off a base unless it is asked for."""
    drop_unused_pooler(model, recipe.classify.pooling)


def labels_of(folder: Path) -> tuple[str, ...]:
    """The labels of the head beside an adapter. Raises ModelError."""
    return read_spec(folder).labels
