"""Targets that cannot be measured: each is named with its reason and left out, the others go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edgetune.errors import EdgeTuneError, Stopped, first_line

_Found = TypeVar("_Found")


@dataclass
class LeftOut:
    """What was left out so far."""

    errors: dict[str, Exception] = field(default_factory=dict)
    """Name of a target, or the path that names none -> what went wrong first."""

    def attempt(self, name: str, work: Callable[[], _Found]) -> _Found | None:
        """What `work` gives; None where the target cannot be loaded or measured, or its process died."""
        try:
            return work()
        except Stopped:
            raise
        except (EdgeTuneError, RuntimeError) as error:  # the latter is of a process that died: see child_process.ask
            self.errors.setdefault(name, error)
            return None

    def refuse_if_all(self, left: int) -> None:
        """Raise what the first target raised if `left`, the number of the others, is 0."""
        if not left and self.errors:
            raise next(iter(self.errors.values()))

    @property
    def told(self) -> list[dict[str, Any]]:
        """{"target", "reason", "exit_code": of the error} of each."""
        return [
            {"target": name, "reason": _reason(error), "exit_code": getattr(error, "exit_code", 1)}
            for name, error in self.errors.items()
        ]


def _reason(error: Exception) -> str:
    """An error that is meant for people as it is; of a process that died the last line that it wrote, too."""
    if isinstance(error, EdgeTuneError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join(dict.fromkeys([first_line(error), *lines[-1:]]))
