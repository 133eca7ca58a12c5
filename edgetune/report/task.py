"""The words that reports, cards and verbs have for a task: one module each. A task more is such a module and a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from edgetune.report import classification, generation
from edgetune.runtime.bundle import Bundle


class Task(Protocol):
    """How people are told of the models of one task. Sentences are plain text, code is as it is typed."""

    KIND: str
    """What such a model is called, in the singular."""
    RESULT: str
    """What a run makes of its base, as a sentence begins."""
    UNIT: str
    """What the loss is a mean over, one of them."""
    TRY_VERB: str
    """The verb of `edgetune` to try a bundle with."""
    HUB_TASK: str
    """What the hub calls the task."""
    OPENED_BY: tuple[str, ...]
    """Other libraries that open a bundle, by the tags that the hub has for them."""
    AUTO_CLASS: str
    """The class of transformers that loads the base which an adapter is put on."""
    FOLDED: str
    """What `edgetune merge` makes of an adapter."""
    COMMAND: str
    """A shell command that runs a bundle."""
    PYTHON: tuple[str, ...]
    """The same in Python, line by line."""
    LENGTH: str
    """What its length in tokens is a limit of."""

    def abilities(self, bundle: Bundle) -> str | None:
        """What a bundle can answer, where that can be listed."""

    def refusals(self, bundle: Bundle) -> str | None:
        """When a bundle does not answer."""

    def details(self, score: Any, results: Path, *, title: str) -> Mapping[str, Any] | None:
        """What a run's summary has of the bundle's score beside the table; what it draws is put into `results`."""


TASKS: Mapping[str, Task] = {"generation": generation, "classification": classification}


def task_named(name: str) -> Task:
    """The task that a run folder names; that of recipes which name none, if there is no such task."""
    return TASKS.get(name, generation)


def task_of(bundle: Bundle) -> str:
    """The task of a bundle, as a recipe names it."""
    return "classification" if bundle.classifier else "generation"
