"""Adapters of decoders: nothing belongs to them but their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.recipe import Recipe

FILES: tuple[str, ...] = ()


def check_base(_base: Path, _recipe: Recipe) -> None:
    """Nothing: a decoder has all that is asked for."""


def drop_unused(_model: Any, _recipe: Recipe) -> None:
    """Nothing: all of a decoder is used."""


def labels_of(_folder: Path) -> tuple[str, ...]:
    """None: text is written."""
    return ()
