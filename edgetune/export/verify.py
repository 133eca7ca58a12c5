"""Verification of a bundle: is what was written what was trained? Called by export on every bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune.runtime.bundle import Bundle


@dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    name: str
    passed: bool
    value: float
    """What was measured."""
    limit: float
    """What it may be: at most this for deviations, at least this for agreement; `detail` says which."""
    detail: str


@dataclass(frozen=True)
class Verification:
    """All checks of a bundle."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def verify(bundle: Bundle, merged: Path, prompts: Sequence[Sequence[dict[str, str]] | str]) -> Verification:
    """Compare a bundle with the Hugging Face folder it was made from, on the user's prompts."""
    ...
