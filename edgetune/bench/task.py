"""The tasks that can be benched: what is measured of each. Importing them loads neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from edgetune.bench import classification, generation
from edgetune.bench.noise import Value
from edgetune.bench.settings import Ask, Measure, Settings

if TYPE_CHECKING:  # a target's own process loads nothing that it is not measured with
    from edgetune.evaluate.evaluate import Result


class Task(Protocol):
    """What benching models of one task has of its own."""

    COLUMNS: tuple[str, ...]
    """What `columns` gives that another task may not have."""
    LACKS: Value
    """Why columns of other tasks are absent."""
    WRITES_TEXT: bool
    """Whether tasks of lm-eval can be asked."""

    MEASURES: Mapping[str, Measure]
    """What its processes can be asked, by name."""

    def worth(self, result: Result, is_same_text: bool, /) -> dict[str, Value]:
        """The columns of a score; `is_same_text`: the reference saw the same."""
        ...

    def measure_round(self, ask: Ask, settings: Settings, /) -> dict[str, Any]:
        """One measurement of everything, each in a process of its own; says "device"."""
        ...

    def columns(
        self, rounds: Sequence[Mapping[str, Any]], settings: Settings, machine: Mapping[str, Any], /
    ) -> dict[str, Value]:
        """What rounds become, on a machine that can do at best as much."""
        ...


TASKS: Mapping[str, Task] = {"generation": generation, "classification": classification}
