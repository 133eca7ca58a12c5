"""Mixing new rows with old ones: how many, which, and that none is both learned and scored."""

from __future__ import annotations

import json

import pytest

from edgetune.data.prepare import examples
from edgetune.data.replay import EVAL, NEW_EVAL, OLD_EVAL, TRAIN, mix, sample
from edgetune.errors import DataError
from edgetune.recipe import parse_recipe


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(train, eval_rows, *, more="", table=""):
    text = f'[model]\nbase = "x"\n{more}[data]\ntrain = "{train}"\neval = "{eval_rows}"\n{table}'
    return parse_recipe(text, source="test")


@pytest.fixture
def pairs(tmp_path):
    def make(name, count, *, prompt="prompt", completion="completion"):
        rows = [{prompt: f"{name} {number}", completion: f"answer {number}"} for number in range(count)]
        return write(tmp_path / f"{name}.jsonl", rows)

    return make


def read(folder, name):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def asked(row):
    return row["messages"][0]["content"]


@pytest.mark.parametrize(("share", "replayed"), [(0.0, 0), (0.25, 10), (0.5, 30), (0.9, 40)])
def test_a_share_of_the_training_rows_is_old(pairs, tmp_path, share, replayed):
    old, new = recipe(pairs("old", 40), pairs("o", 7)), recipe(pairs("new", 30), pairs("n", 5))
    found = mix(old, new, tmp_path, share=share)
    names = [asked(row).split()[0] for row in read(tmp_path, TRAIN)]
    assert (names.count("new"), names.count("old")) == (found.new_train, found.replayed) == (30, replayed)
    assert (len(read(tmp_path, OLD_EVAL)), len(read(tmp_path, NEW_EVAL))) == (7, 5)
    assert {asked(row).split()[0] for row in read(tmp_path, EVAL)} == ({"n", "o"} if share else {"n"})


def test_the_same_seed_draws_the_same_rows_and_no_row_twice(pairs, tmp_path):
    old, new = recipe(pairs("old", 400), pairs("o", 7)), recipe(pairs("new", 30), pairs("n", 5))
    texts = []
    for place in ("a", "b"):
        mix(old, new, tmp_path / place, share=0.5)
        texts.append((tmp_path / place / TRAIN).read_text())
    assert texts[0] == texts[1]
    assert len(set(texts[0].splitlines())) == 60


def test_a_new_row_that_is_scored_is_not_learned(pairs, tmp_path):
    twins = [{"prompt": f"{name} {number}", "completion": f"answer {number}"} for name in "on" for number in range(2)]
    new_rows = write(tmp_path / "new.jsonl", [*twins, {"prompt": "really new", "completion": "yes"}])
    found = mix(recipe(pairs("old", 9), pairs("o", 3)), recipe(new_rows, pairs("n", 3)), tmp_path, share=0.0)
    assert [asked(row) for row in read(tmp_path, TRAIN)] == ["really new"]
    assert found.left_out == 4
    assert "4 new rows left out" in found.summary


def test_nothing_new_is_an_error(pairs, tmp_path):
    rows = pairs("o", 3)
    with pytest.raises(DataError, match="no new row to learn"):
        mix(recipe(pairs("old", 9), rows), recipe(rows, pairs("n", 2)), tmp_path, share=0.5)


def test_rows_read_back_as_they_were_whatever_their_columns_are_called(pairs, tmp_path):
    old = recipe(
        pairs("old", 5, prompt="q", completion="a"),
        pairs("o", 2, prompt="q", completion="a"),
        table='system = "be brief"\ncolumns = { prompt = "q", completion = "a" }\n',
    )
    mix(old, recipe(pairs("new", 5), pairs("n", 2), table='system = "be brief"\n'), tmp_path, share=0.5)
    again = recipe(tmp_path / TRAIN, tmp_path / OLD_EVAL, table='system = "be brief"\n')
    assert [row.messages for row in examples(again, "eval")] == [row.messages for row in examples(old, "eval")]
    assert all(row.messages[0].role == "system" and len(row.messages) == 3 for row in examples(again, "train"))


def test_texts_do_not_mix_with_conversations(pairs, tmp_path):
    texts = write(tmp_path / "t.jsonl", [{"text": f"text {number}"} for number in range(5)])
    held_out = write(tmp_path / "h.jsonl", [{"text": "another"}])
    with pytest.raises(DataError, match=r"t.jsonl:1: is a plain text, the old rows are each a conversation"):
        mix(recipe(pairs("old", 9), pairs("o", 3)), recipe(texts, held_out), tmp_path, share=0.5)


@pytest.mark.parametrize("is_set", [False, True])
def test_labels_are_kept_and_new_ones_refused(tmp_path, is_set):
    def file(name, label):
        return write(tmp_path / f"{name}.jsonl", [{"text": f"{name} {n}", "label": label} for n in range(4)])

    first = "a,b" if is_set else "a"
    options = {"more": 'task = "classification"\n', "table": f"[classify]\nmulti_label = {str(is_set).lower()}\n"}
    old = recipe(file("old", first), file("o", first), **options)
    mix(old, recipe(file("new", "b"), file("n", "b"), **options), tmp_path / "m", share=0.5, labels=("a", "b"))
    again = recipe(tmp_path / "m" / TRAIN, tmp_path / "m" / OLD_EVAL, **options)
    assert {row.labels for row in examples(again, "eval")} == {("a", "b") if is_set else ("a",)}
    with pytest.raises(DataError, match=r"c.jsonl:1: label 'c' is none that the classifier was trained with"):
        mix(old, recipe(file("c", "c"), file("n", "b"), **options), tmp_path / "m", share=0.5, labels=("a", "b"))


def test_a_sample_is_of_train_and_eval_rows(pairs):
    found = sample(recipe(pairs("old", 40), pairs("o", 7)), 30)
    assert len(found) == len(set(found)) == 30
    assert len(sample(recipe(pairs("old", 4), pairs("o", 3)), 30)) == 7
