"""How a stage tells what it does while it works: it calls a function with one event after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Progress = Callable[[Mapping[str, Any]], None]
"""What stages call to report: a flat mapping with at least "stage"; `cli.console.ProgressLine` says what else."""


def silent(event: Mapping[str, Any]) -> None:
    """The progress that nobody watches."""


def as_stage(progress: Progress | None, stage: str) -> Progress:
    """What tells each event on to `progress`, if there is one, as an event of `stage`."""
    tell = progress or silent
    return lambda event: tell({**event, "stage": stage})
