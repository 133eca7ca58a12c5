"""Keys that recipes no longer have.

The recipe in a run folder holds every key, so that one of an earlier version has these too: where it says what now
always holds, it is read over; where it says otherwise, it is told what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Removed:
    """What became of a key."""

    now: Any
    """What holds whatever a recipe says: the key's default, when it went."""
    reason: str
    """Why it is not missed, for a user who misses it."""


REMOVED: Mapping[str, Removed] = {
    "train.plateau_factor": Removed(0.5, "a plateau halves the learning rate, again and again"),
    "export.on_grid_steps": Removed(
        0, "repair does as well in as many steps, in less memory; raise export.repair_steps"
    ),
    "export.on_grid_learning_rate": Removed(1e-4, "it went with export.on_grid_steps"),
    "export.repair_learning_rate": Removed(1e-3, "repair keeps its best step; change export.repair_steps"),
    "evaluate.bootstrap_samples": Removed(1000, "intervals are those of 1000 resamples"),
    "evaluate.confidence": Removed(0.95, "intervals are those of 95 %"),
}
"""By name, like "train.plateau_factor"."""


def removed_keys(table: str) -> dict[str, Removed]:
    """Those that a table had."""
    named = ((*name.partition(".")[::2], removed) for name, removed in REMOVED.items())
    return {key: removed for owner, key, removed in named if owner == table}


def without_removed(table: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The values of a table without keys that are gone, and (key, problem) for each that asks for something else."""
    gone = removed_keys(table)
    problems = [
        (key, f"was removed: {gone[key].reason}; leave it out")
        for key, value in values.items()
        if key in gone and value != gone[key].now
    ]
    return {key: value for key, value in values.items() if key not in gone}, problems
