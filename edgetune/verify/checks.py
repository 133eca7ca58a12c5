"""What a verification is made of: single checks, each a number with its limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from edgetune.errors import first_line
from edgetune.model.quiet import quiet


@dataclass(frozen=True)
class Check:
    """One thing that was checked; it passed if value <= limit."""

    name: str
    passed: bool
    value: float
    """What was measured, the less the better."""
    limit: float
    detail: str
    is_required: bool = True
    """Whether the bundle is refused if this fails; else it is told only."""


@dataclass(frozen=True)
class Verification:
    """All checks of a bundle."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every required check passed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The required checks that failed."""
        return tuple(check for check in self.checks if check.is_required and not check.passed)

    def to_json(self) -> dict[str, Any]:
        """For edgetune.json and --json."""
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}


def check(name: str, value: float, limit: float, detail: str, *, is_required: bool = True) -> Check:
    """The outcome of a check; a value that is NaN does not pass."""
    return Check(name, bool(value <= limit), float(value), float(limit), detail, is_required)


def made(name: str, make: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks that `make` yields; one that failed, with the reason, if they cannot even be made."""
    try:
        with quiet():
            return list(make())
    except Exception as error:  # whatever a broken graph or tokenizer makes the libraries raise
        return [Check(name, False, math.inf, 0.0, f"cannot be checked: {first_line(error)}")]
