"""report/task.py: what people are told of each task."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgetune.cli import main
from edgetune.report.facts import Report, Run
from edgetune.report.page import lead, loss_unit
from edgetune.report.task import TASKS, task_named
from edgetune.runtime.bundle import open_bundle


def test_the_verbs_that_people_are_told_of_exist() -> None:
    assert {task.try_verb for task in TASKS.values()} <= set(main.commands)
    assert {task.command.split()[1] for task in TASKS.values()} <= set(main.commands)


@pytest.mark.parametrize("task", TASKS)
def test_the_python_of_a_card_is_python(task: str) -> None:
    compile("\n".join(TASKS[task].python), task, "exec")


def test_a_run_of_no_known_task_is_told_of_as_one_that_names_none() -> None:
    assert task_named("chess") is task_named("") is TASKS["generation"]


def test_a_bundle_tells_its_task(tiny_bundle: Path, word_bundle: Path) -> None:
    assert (open_bundle(tiny_bundle).task, open_bundle(word_bundle).task) == ("generation", "classification")


def test_a_threshold_is_told_of(word_bundle: Path) -> None:
    bundle = open_bundle(word_bundle)
    format_ = bundle.classifier_format
    sure, unsure = (
        dataclasses.replace(bundle, classifier=dataclasses.replace(format_, threshold=threshold))
        for threshold in (None, 0.25)
    )
    assert TASKS["classification"].refusals(sure) is None
    assert TASKS["classification"].refusals(unsure) == 'It answers "unknown" below a probability of 0.250.'


@pytest.mark.parametrize(
    ("tasks", "unit", "what"),
    [
        (("generation",), "trained token", "A fine-tune"),
        (("classification",), "text", "A classifier"),
        (("classification", "generation"), "trained token, of classifiers per text", "2 fine-tunes"),
    ],
)
def test_a_page_says_what_its_losses_are_of(tasks: tuple[str, ...], unit: str, what: str) -> None:
    runs = tuple(Run(name=task, path=task, task=task, metric=None) for task in tasks)
    report = Report("runs", runs, measurements=(), problems=(), provenance={})
    assert loss_unit(report) == unit
    assert lead(report).startswith(what)
