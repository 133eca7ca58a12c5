"""What stands in a recipe's way, found in one go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgetune.errors import EdgeTuneError, RecipeError

CHECKED_ROWS = 200
"""Rows of each source that are read, rendered and tokenised."""


@dataclass
class Findings:
    """What stands in a recipe's way, each problem once, and what its owner may not expect."""

    problems: list[EdgeTuneError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[[], Any]) -> Any:
        """What the work gives; None where it raised what is now among the problems."""
        try:
            return work()
        except EdgeTuneError as error:
            if str(error) not in map(str, self.problems):
                self.problems.append(error)
            return None

    def holds(self, work: Callable[[], Any]) -> bool:
        """Whether the work raised nothing."""
        return self.attempt(lambda: (work(),)) is not None

    def raise_any(self) -> None:
        """Raises RecipeError with all problems, or the only one as it is."""
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            lines = [str(problem) for problem in self.problems]
            raise RecipeError("\n".join([f"{len(lines)} problems", *lines]), problems=lines)
