"""The tasks of bundles, by the names that recipes have for them: what edgetune.json says of each, and its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from edgetune.runtime import classification, generation


class Task(Protocol):
    """What bundles of one task have that those of another have not."""

    KEY: str
    """Its table in edgetune.json, and the field of `Bundle` that holds it."""
    NEEDED: tuple[str, ...]
    """Files without which it cannot run."""

    def read(self, values: Mapping[str, Any], /) -> Any:
        """The table as a frozen dataclass. Raises ValueError, KeyError or TypeError for one that cannot be trusted."""
        ...


TASKS: Mapping[str, Task] = {"generation": generation, "classification": classification}
OLD_NAMES = {"causal-lm": "generation"}
"""What bundles of earlier versions call a task."""
