"""The table that stands for trainings in the comparison of searches, and what is read off its searches."""

from __future__ import annotations

import math

import pytest

from benchmarks.tune_table import MARKS, Axis, TableBench, grid
from benchmarks.tuned import draw, found_at, tokens_until, tune_table
from edgetune.recipe import parse_recipe

AXES = (Axis("train.learning_rate", (1e-3, 1e-2, 1e-1)), Axis("lora.r", (4, 16)))


def entry(values: dict[str, float]) -> dict[str, object]:
    """A training whose loss falls to its decade of learning rate plus its rank / 100."""
    loss = -math.log10(values["train.learning_rate"]) + values["lora.r"] / 100
    losses = [loss + 1 - mark / MARKS for mark in range(1, MARKS + 1)]
    return {"values": values, "eval_losses": losses, "loss": loss, "score": loss, "tokens": 1000}


@pytest.fixture
def table() -> TableBench:
    """Of six trainings, the fastest of which diverged at rank 16."""
    entries = [entry(values) for values in grid(AXES)]
    entries[-1] = {"values": entries[-1]["values"], "diverged": True, "tokens": 300}
    return TableBench(AXES, entries, worst_score=20.0, learning_rate=1e-2)


def measured(table: TableBench, rate: float, r: int, folder):
    text = '[model]\nbase = "x"\n[data]\ntrain = "x"\n[evaluate]\nmetric = "loss"\n'
    overrides = [f"lora.r={r}", f"train.learning_rate={rate}"]
    events = []
    recipe = parse_recipe(text, source="x", name="x", overrides=overrides)
    found = table.measure(recipe, folder, progress=events.append)
    return found, events


def test_a_training_of_the_table_is_told_as_it_was(table, tmp_path):
    found, events = measured(table, 1e-2, 4, tmp_path)
    assert (found.loss, found.tokens) == (pytest.approx(2.04), 1000)
    assert [event["eval_loss"] for event in events] == [pytest.approx(3.04 - mark / MARKS) for mark in range(1, 11)]
    assert [event["tokens"] for event in events] == list(range(100, 1001, 100))


def test_between_trainings_values_lie_evenly_by_their_logarithms(table, tmp_path):
    found, _ = measured(table, math.sqrt(1e-3 * 1e-2), 8, tmp_path)
    assert found.loss == pytest.approx(2.5 + (0.04 + 0.16) / 2)


def test_beyond_the_table_its_edge_counts_and_a_diverged_training_is_the_worst(table, tmp_path):
    assert measured(table, 1e-5, 4, tmp_path)[0].loss == pytest.approx(3.04)
    found, events = measured(table, 0.5, 16, tmp_path)
    assert (found.loss, found.tokens, events[0]["eval_loss"]) == (20.0, 300, 20.0)


@pytest.fixture
def task():
    """Two searches by one method."""
    runs = [
        {"course": [(10, 3.0, {"lora.r": 4}), (40, 1.0, {"lora.r": 8})]},
        {"course": [(10, 3.0, {}), (20, 1.0, {})]},
    ]
    facts = {"budgets": [4, 10], "training_tokens": 10, "table": [{}] * 6, "default": 3.0, "extremes": [0.5, 9.0]}
    return {**facts, "is_loss": True, "score_of": "exported", "searches": {"random": runs, "TPE": runs}}


def test_tokens_are_counted_until_the_median_of_the_seeds_is_there(task):
    course = task["searches"]["TPE"][0]["course"]
    assert [found_at(course, tokens)[1] for tokens in (5, 10, 39, 40, 99)] == [3.0, 3.0, 3.0, 1.0, 1.0]
    assert found_at(course, 99)[2] == {"lora.r": 8}
    assert tokens_until(task, "TPE", 2.0, 10) == pytest.approx(2.0, abs=0.1)
    assert tokens_until(task, "TPE", 1.0, 10) == pytest.approx(4.0, abs=0.1)
    assert tokens_until(task, "TPE", 0.5, 10) is None


def test_searches_are_shown_by_budget_as_a_table_and_a_picture(task, tmp_path):
    report = {"tasks": {"nano-snips": task}, "threads": 1, "provenance": {"processor": "X"}}
    lines = tune_table(report).splitlines()
    assert lines[0].count("trainings' tokens") == 2
    assert "| TPE | 1.0000 (1.0000 to 1.0000) | 4.0 | 1.0000 (1.0000 to 1.0000) | 4.0 |" in lines
    assert (
        "2 seeds each; a whole training has 10 tokens; the best of the 6 trainings in the table has 0.5000."
        in lines[-3]
    )
    assert lines[-3].endswith("calibrated and repaired as export does.")
    draw(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_is_of_exported_models_where_all_its_trainings_are(table):
    entries = [entry(values) | {"exported": {"loss": 0.5, "score": 0.25}} for values in grid(AXES)]
    exported = TableBench(AXES, entries, worst_score=20.0, learning_rate=1e-2)
    assert (table.is_exported, exported.is_exported) == (False, True)
    assert exported.extremes == (0.25, 0.25)


@pytest.mark.parametrize(("score", "told"), [(0.9, "12.0"), (1.1, "-")])
def test_a_population_stands_beside_the_searches_with_all_its_tokens(score, told):
    runs = [{"course": [(10, 3.0), (40, 1.0)]}]
    task = {"is_loss": True, "training_tokens": 10, "budgets": [12, 24], "searches": {"random": runs}, "table": [1]}
    population = [{"score": score, "members": 12, "tokens": 120}] * 2
    facts = {"default": 2.0, "extremes": [0.5, 3.0], "score_of": "deployed", "populations": population}
    report = {"tasks": {"nano-snips": {**task, **facts}}, "threads": 1, "provenance": {"processor": "X"}}
    row = next(line for line in tune_table(report).splitlines() if "population" in line)
    name = "population-based training, 12 members, 2 seeds"
    assert row == f"| {name} | {score:.4f} ({score:.4f} to {score:.4f}) | {told} | | |"


def test_the_table_of_searches_shows_no_part_that_was_not_measured():
    report = {"tasks": {"nano-snips": {"table": []}}, "threads": 1, "provenance": {"processor": "X"}}
    assert tune_table(report) == "Trained in 1 thread of X."
