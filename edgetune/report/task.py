"""The words that reports, cards and verbs have for a task: a row each. A task more is such a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.model import decoder, encoder
from edgetune.recipe.task import TASKS as RECIPES
from edgetune.report import classification
from edgetune.runtime.bundle import Bundle


def _nothing(_bundle: Bundle) -> None:
    return None


def _no_details(_score: Any, _results: Path, *, title: str) -> None:  # noqa: ARG001
    return None


@dataclass(frozen=True)
class Task:
    """How people are told of the models of one task. Sentences are plain text, code is as it is typed."""

    kind: str
    """What such a model is called, in the singular."""
    result: str
    """What a run makes of its base, as a sentence begins."""
    unit: str
    """What the loss is a mean over, one of them."""
    try_verb: str
    """The verb of `edgetune` to try a bundle with."""
    hub_task: str
    """What the hub calls the task."""
    auto_class: str
    """The class of transformers that loads the base which an adapter is put on."""
    folded: str
    """What `edgetune merge` makes of an adapter."""
    command: str
    """A shell command that runs a bundle."""
    python: tuple[str, ...]
    """The same in Python, line by line."""
    length: str
    """What its length in tokens is a limit of."""
    opened_by: tuple[str, ...] = ()
    """Other libraries that open a bundle, by the tags that the hub has for them."""
    abilities: Callable[[Bundle], str | None] = _nothing
    """What a bundle can answer, where that can be listed."""
    refusals: Callable[[Bundle], str | None] = _nothing
    """When a bundle does not answer."""
    details: Callable[..., Mapping[str, Any] | None] = _no_details
    """What a run's summary has of the bundle's score beside the table, from (score, results, title=...); what it draws
    is put into the folder `results`."""


TASKS: Mapping[str, Task] = {
    "generation": Task(
        kind="decoder",
        result="A fine-tune",
        unit=RECIPES["generation"].learned,
        try_verb="chat",
        hub_task="text-generation",
        auto_class=decoder.AUTO_CLASS,
        folded="`edgetune merge` folds it into its base.",
        command='edgetune generate path/to/this/folder "a text"',
        python=(
            "from edgetune.runtime.decoder import Decoder",
            "",
            'print(Decoder("path/to/this/folder").generate("a prompt").text)',
        ),
        length="prompt and answer together",
        opened_by=("onnxruntime-genai",),
    ),
    "classification": Task(
        kind="classifier",
        result="A classifier",
        unit=RECIPES["classification"].learned,
        try_verb="classify",
        hub_task="text-classification",
        auto_class=encoder.AUTO_CLASS,
        folded="`edgetune merge` folds it into its base, with the head that labels.",
        command='edgetune classify path/to/this/folder "a text"',
        python=(
            "from edgetune.runtime.classifier import Classifier",
            "",
            'print(Classifier("path/to/this/folder").classify(["a text"]))',
        ),
        length="longer texts are cut",
        abilities=classification.abilities,
        refusals=classification.refusals,
        details=classification.details,
    ),
}


def task_named(name: str) -> Task:
    """The task that a run folder names; that of recipes which name none, if there is no such task."""
    return TASKS.get(name, TASKS["generation"])
