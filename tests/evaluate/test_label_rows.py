"""evaluate/label_rows.py: which rows a classifier is scored on and which it is calibrated on."""

from __future__ import annotations

import json

import pytest

from edgetune.errors import DataError
from edgetune.evaluate.label_rows import (
    make_calibration_set,
    make_label_set,
    read_label_set,
)
from edgetune.evaluate.rows import write_rows
from edgetune.recipe import parse_recipe

LABELS = ("a", "b", "other")


@pytest.fixture
def recipe_for(tmp_path):
    """A function that makes a recipe of data files: a name for each source, and more [classify] lines."""

    def make(classify="", **sources):
        named = "".join(f"{key} = {json.dumps(str(tmp_path / name))}\n" for key, name in sources.items())
        text = f'[model]\nbase = "x"\ntask = "classification"\n[data]\n{named}[classify]\n{classify}'
        return parse_recipe(text, source="recipe.toml")

    return make


@pytest.fixture
def write(tmp_path):
    """A function that writes labelled rows: text and label by number."""

    def rows(name, count=6, labels=("a", "b")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        each = ({"text": f"{name} {n}", "label": labels[n % len(labels)]} for n in range(count))
        path.write_text("".join(json.dumps(row) + "\n" for row in each))

    return rows


def texts(rows):
    return [row.text for row in rows]


@pytest.mark.parametrize("own_test", [False, True], ids=["no test rows", "a train folder with a test split"])
def test_named_eval_rows_are_the_rows_to_calibrate_on(recipe_for, write, own_test):
    train = "folder/train.jsonl" if own_test else "train.jsonl"
    for name in (train, "eval.jsonl", "folder/test.jsonl"):
        write(name)
    found = make_label_set(recipe_for(train="folder" if own_test else train, eval="eval.jsonl"), LABELS)
    scored = "folder/test.jsonl" if own_test else "eval.jsonl"
    assert texts(found.calibration) == [f"eval.jsonl {n}" for n in range(6)]
    assert texts(found.rows) == [f"{scored} {n}" for n in range(6)]
    assert found.source.endswith("folder (test: test.jsonl)" if own_test else "eval.jsonl")
    assert found.scores_calibration_rows is not own_test


def test_rows_set_apart_from_train_are_both_scored_and_calibrated_on_where_there_are_no_others(recipe_for, write):
    write("train.jsonl", 100)
    found = make_label_set(recipe_for(train="train.jsonl"), LABELS)
    assert found.rows == found.calibration
    assert found.scores_calibration_rows
    assert found.source.endswith("train.jsonl")
    assert "% of " in found.source


def test_drawn_eval_rows_are_calibration_rows_too(recipe_for, write):
    write("train.jsonl", 100)
    write("eval.jsonl", 20)
    recipe = recipe_for(
        'out_of_scope_label = "other"\n[evaluate]\nmax_rows = 5\n', train="train.jsonl", eval="eval.jsonl"
    )
    found = make_label_set(recipe, LABELS)
    assert (len(found.rows), len(found.calibration)) == (5, 20)
    assert found.scores_calibration_rows


def test_test_rows_of_their_own_are_not_calibrated_on(recipe_for, write):
    for name in ("train.jsonl", "eval.jsonl", "test.jsonl"):
        write(name)
    found = make_label_set(recipe_for(train="train.jsonl", eval="eval.jsonl", test="test.jsonl"), LABELS)
    assert not found.scores_calibration_rows
    assert found.source.endswith("test.jsonl")


def test_a_single_source_without_eval_split_is_scored_and_calibrated_on(recipe_for, write):
    """As where a model that no run made is scored: its train split is what it may have learned from."""
    write("folder/train.jsonl")
    write("folder/test.jsonl")
    found = make_label_set(recipe_for(train="folder", eval="folder", test="folder"), LABELS)
    assert texts(found.calibration) == texts(found.rows) == [f"folder/test.jsonl {n}" for n in range(6)]
    assert found.scores_calibration_rows


def test_calibration_alone_reads_no_test_rows(recipe_for, write):
    for name in ("train.jsonl", "eval.jsonl"):
        write(name)
    write("test.jsonl", labels=("unheard of",))
    found = make_calibration_set(recipe_for(train="train.jsonl", eval="eval.jsonl", test="test.jsonl"), LABELS)
    assert found.rows == ()
    assert texts(found.calibration) == [f"eval.jsonl {n}" for n in range(6)]


def test_no_text_to_calibrate_on_is_an_error(recipe_for, write, tmp_path):
    write("train.jsonl")
    write("test.jsonl")
    (tmp_path / "eval.jsonl").write_text('{"text": " ", "label": "a"}\n')
    with pytest.raises(DataError, match=r"eval\.jsonl: no row with a text to calibrate on"):
        make_label_set(recipe_for(train="train.jsonl", eval="eval.jsonl", test="test.jsonl"), LABELS)


def test_rows_that_are_all_out_of_scope_are_an_error(recipe_for, write):
    write("train.jsonl")
    write("test.jsonl", labels=("other",))
    recipe = recipe_for('out_of_scope_label = "other"\n', train="train.jsonl", test="test.jsonl")
    with pytest.raises(DataError, match=r"test\.jsonl: every row is out of scope"):
        make_label_set(recipe, LABELS)


def test_rows_out_of_scope_need_no_label_of_the_head(recipe_for, write):
    write("train.jsonl")
    write("eval.jsonl", labels=("a", "b", "unheard of"))
    recipe = recipe_for('out_of_scope_label = "unheard of"\n', train="train.jsonl", eval="eval.jsonl")
    found = make_label_set(recipe, ("a", "b"))
    assert found.labels == ("a", "b", "unheard of")
    assert found.out_of_scope == 2
    assert [row.labels for row in found.rows[:3]] == [(0,), (1,), (2,)]


def test_an_out_of_scope_label_that_no_row_has_is_an_error(recipe_for, write):
    write("train.jsonl", 100)
    recipe = recipe_for('out_of_scope_label = "othr"\n', train="train.jsonl")
    with pytest.raises(DataError, match=r"out_of_scope_label: 'othr' is no label .* did you mean 'other'"):
        make_label_set(recipe, LABELS)


def test_a_label_set_survives_its_file(recipe_for, write, tmp_path):
    write("train.jsonl", 100)
    found = make_label_set(recipe_for(train="train.jsonl"), LABELS)
    write_rows(tmp_path / "rows.json", found)
    assert read_label_set(tmp_path / "rows.json") == found
