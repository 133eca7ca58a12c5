"""data/classification.py: texts with labels, from any table or from folders, to token ids and targets."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from edgetune.data.files import Row
from edgetune.data.labels import find_columns, to_labelled
from edgetune.data.prepare import check_labels, examples, prepare, require_usable
from edgetune.errors import DataError
from edgetune.model.base import load_tokenizer
from edgetune.recipe import ClassifyTable, parse_recipe

ROWS = [(f"turn {word} the lamp {number}", word) for number in range(40) for word in ("on", "off")]


@pytest.fixture
def recipe_for(tmp_path):
    def make(*overrides, source=None):
        path = source or tmp_path / "rows.jsonl"
        if source is None:
            path.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in ROWS))
        text = f'[model]\nbase = "x"\ntask = "classification"\n[data]\ntrain = {json.dumps(str(path))}\n'
        return parse_recipe(text, source="recipe.toml", overrides=["data.eval_fraction=0.2", *overrides])

    return make


def prepared(recipe, tokenizer, tmp_path, *, max_length=64):
    return prepare(recipe, tokenizer, max_length=max_length, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("text", "label"), ("text", "label")),
        (("id", "utterance", "intent"), ("utterance", "intent")),
        (("sentence", "class", "extra"), ("sentence", "class")),
    ],
)
def test_columns_are_found_by_their_usual_names(columns, found):
    assert find_columns(Row(dict.fromkeys(columns, "x"), "f:1")) == found


def test_columns_that_are_not_found_are_a_line_that_lists_what_is_there():
    with pytest.raises(DataError, match=r"f:1: no column for the label; found: text, ham"):
        find_columns(Row({"text": "a", "ham": "b"}, "f:1"))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("spam", "spam"),
        (" spam ", "spam"),
        (3, "3"),
        (3.0, "3"),
        ("3.0", "3"),
        (True, "true"),
        ("True", "true"),
        ("7", "7"),
    ],
)
def test_names_whole_numbers_and_truth_are_labels(value, name):
    row = Row({"text": "a", "label": value}, "f:1")
    assert to_labelled(row, columns=("text", "label"), table=ClassifyTable()).labels == (name,)


@pytest.mark.parametrize("value", [0.37, "0.37", None, "", "  ", {"a": 1}])
def test_what_is_no_label_is_named_with_its_place(value):
    with pytest.raises(DataError, match=r"f:1: column 'label' holds .* no label"):
        to_labelled(Row({"text": "a", "label": value}, "f:1"), columns=("text", "label"), table=ClassifyTable())


def test_a_list_of_labels_needs_multi_label():
    row = Row({"text": "a", "label": ["x", "y", "x"]}, "f:1")
    with pytest.raises(DataError, match="multi_label = true"):
        to_labelled(row, columns=("text", "label"), table=ClassifyTable())
    assert to_labelled(row, columns=("text", "label"), table=ClassifyTable(multi_label=True)).labels == ("x", "y")


@pytest.mark.parametrize(("value", "names"), [("x, y", ("x", "y")), ("", ()), (None, ()), ("x", ("x",)), ([], ())])
def test_several_labels_may_stand_in_one_text(value, names):
    row = Row({"text": "a", "label": value}, "f:1")
    assert to_labelled(row, columns=("text", "label"), table=ClassifyTable(multi_label=True)).labels == names


def test_rows_become_ids_and_targets_with_the_tokenizers_special_tokens(recipe_for, tokenizer, tmp_path):
    recipe = recipe_for()
    found = prepared(recipe, tokenizer, tmp_path)
    assert found.labels == ("off", "on")
    first = next(examples(recipe, "train"))
    assert list(found.train.tokens[0].input_ids) == tokenizer(first.text)["input_ids"]
    assert found.labels[int(found.train.target([0])[0])] == first.labels[0]
    assert len(found.train) + len(found.eval) == len(ROWS)
    assert found.train.counts().sum() == len(found.train)
    assert found.report.train_rows == len(found.train)


def test_multi_label_targets_are_sets(recipe_for, tokenizer, tmp_path):
    path = tmp_path / "sets.jsonl"
    rows = [{"text": f"row {n}", "label": [["a"], ["a", "c"], []][n % 3]} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_for("classify.multi_label=true", source=path)
    found = prepared(recipe, tokenizer, tmp_path)
    assert found.labels == ("a", "c")
    kept = list(examples(recipe, "train"))
    wanted = [[float(name in example.labels) for name in found.labels] for example in kept]
    assert found.train.target(range(len(kept))).tolist() == wanted
    assert found.train.counts().tolist() == np.sum(wanted, 0).tolist()


def test_empty_texts_are_left_out_and_counted(recipe_for, tokenizer, tmp_path):
    path = tmp_path / "gaps.jsonl"
    rows = [{"text": text, "label": name} for text, name in ROWS] + [{"text": " ", "label": "on"}] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text('{"text": "turn it on", "label": "on"}\n{"text": null, "label": "on"}\n')
    report = prepared(recipe_for(f"data.eval={held_out}", source=path), tokenizer, tmp_path).report
    assert (report.dropped_empty, report.eval_dropped, report.eval_rows) == (3, 1, 1)
    assert any("3 rows without text" in note for note in report.notes)


def test_an_eval_row_without_text_is_left_out_whatever_its_label(recipe_for, tokenizer, tmp_path):
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text('{"text": "turn it on", "label": "on"}\n{"text": " ", "label": "dim"}\n')
    assert prepared(recipe_for(f"data.eval={held_out}"), tokenizer, tmp_path).report.eval_dropped == 1


def test_long_texts_are_cut_left_out_or_refused(recipe_for, tokenizer, tmp_path):
    long = "turn on " * 60
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in [*ROWS, (long, "on")]))
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text('{"text": "turn it on", "label": "on"}\n')
    of = lambda how: recipe_for(f"data.too_long={how}", f"data.eval={held_out}", source=path)  # noqa: E731
    cut = prepared(of("truncate"), tokenizer, tmp_path, max_length=20)
    assert cut.report.truncated == 1
    assert max(cut.train.lengths) == 20
    assert prepared(of("drop"), tokenizer, tmp_path, max_length=20).report.dropped_too_long == 1
    with pytest.raises(DataError, match=r"long.jsonl:81: \d+ tokens, more than 20"):
        prepared(of("error"), tokenizer, tmp_path, max_length=20)


def test_where_a_text_that_is_too_long_is_an_error_it_is_found_wherever_it_stands(recipe_for, tokenizer, tmp_path):
    path, held_out = tmp_path / "long.jsonl", tmp_path / "eval.jsonl"
    rows = [*[(f"{n} {text}", name) for n in range(15) for text, name in ROWS], ("turn on " * 60, "on")]
    path.write_text("".join(json.dumps({"text": text, "label": name}) + "\n" for text, name in rows))
    held_out.write_text('{"text": "turn it on", "label": "on"}\n')
    recipe = recipe_for("data.too_long=error", f"data.eval={held_out}", source=path)
    with pytest.raises(DataError, match=r"long.jsonl:1201: \d+ tokens, more than 30"):
        require_usable(recipe, tokenizer, labels=check_labels(recipe), max_length=30)


@pytest.mark.parametrize("text", ["turn on the lamp in the kitchen and then off again", "off " * 9 + "[SEP] " * 5])
def test_a_text_is_cut_as_the_device_tokenizer_cuts_it(recipe_for, tiny_encoder, tmp_path, text):
    """Also where it ends in the names of special tokens."""
    path, held_out, tokenizer = tmp_path / "long.jsonl", tmp_path / "eval.jsonl", load_tokenizer(tiny_encoder)
    path.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in [(text, "on"), ("off", "off")]))
    held_out.write_text('{"text": "on", "label": "on"}\n')
    found = prepared(recipe_for(f"data.eval={held_out}", source=path), tokenizer, tmp_path, max_length=9)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(9)
    assert list(found.train.tokens[0].input_ids) == backend.encode(text).ids


def test_eval_rows_that_are_set_apart_leave_training_every_label(recipe_for, tokenizer, tmp_path):
    """Many labels of one or two rows: whichever rows are drawn, no label is without a training row."""
    path = tmp_path / "many.jsonl"
    rows = [{"text": f"row {n} of {name}", "label": f"label {name}"} for name in range(60) for n in range(1 + name % 2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = prepared(recipe_for(source=path), tokenizer, tmp_path)
    assert len(found.labels) == 60
    assert found.train.counts().min() == 1
    assert 0 < found.report.eval_rows == len(rows) - found.report.train_rows


def test_one_row_a_label_cannot_be_split(recipe_for, tokenizer, tmp_path):
    path = tmp_path / "single.jsonl"
    path.write_text("".join(json.dumps({"text": f"a {n}", "label": f"l{n}"}) + "\n" for n in range(9)))
    with pytest.raises(DataError, match=r"one row a label cannot be split.*name rows in data.eval"):
        prepared(recipe_for(source=path), tokenizer, tmp_path)


def test_where_texts_are_repeated_it_is_said_that_they_count_once(recipe_for, tokenizer, tmp_path):
    path = tmp_path / "repeated.csv"
    path.write_text("text,label\n" + "the lamp is on,on\nthe lamp is off,off\n" * 6)
    with pytest.raises(DataError, match=r"repeated.csv: one row a label, repeated texts counted once, cannot be split"):
        prepared(recipe_for(source=path), tokenizer, tmp_path)


def test_one_label_only_is_refused(recipe_for, tokenizer, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text("".join(json.dumps({"text": f"a {n}", "label": "x"}) + "\n" for n in range(9)))
    with pytest.raises(DataError, match="one label only, 'x'"):
        prepared(recipe_for(source=path), tokenizer, tmp_path)


def test_an_eval_label_that_training_lacks_is_named_with_its_place(recipe_for, tokenizer, tmp_path):
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text('{"text": "a", "label": "on"}\n{"text": "b", "label": "dim"}\n')
    with pytest.raises(DataError, match=r"eval.jsonl:2: label 'dim' does not occur in the training rows"):
        prepared(recipe_for(f"data.eval={held_out}"), tokenizer, tmp_path)


def test_a_test_label_that_training_lacks_stops_before_the_training(recipe_for, tokenizer, tmp_path):
    rows = tmp_path / "test.jsonl"
    rows.write_text('{"text": "a", "label": "on"}\n{"text": "b", "label": "dim"}\n')
    with pytest.raises(DataError, match=r"test.jsonl:2: label 'dim' does not occur in the training rows"):
        prepared(recipe_for(f"data.test={rows}"), tokenizer, tmp_path)


@pytest.mark.parametrize("key", ["positive_label", "out_of_scope_label"])
def test_a_label_that_the_recipe_names_and_no_row_has_stops_before_the_training(recipe_for, tokenizer, tmp_path, key):
    with pytest.raises(DataError, match=rf"classify.{key}: 'onn' is no label of the training rows; did you mean 'on'"):
        prepared(recipe_for(f"classify.{key}=onn"), tokenizer, tmp_path)


def test_eval_rows_out_of_scope_are_left_out_of_the_loss_where_no_training_row_is(recipe_for, tokenizer, tmp_path):
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text('{"text": "a", "label": "on"}\n{"text": "b", "label": "none of these"}\n')
    found = prepared(
        recipe_for(f"data.eval={held_out}", 'classify.out_of_scope_label="none of these"'), tokenizer, tmp_path
    )
    assert "none of these" not in found.labels
    assert (len(found.eval), found.report.eval_rows, found.report.eval_dropped) == (1, 1, 0)
    assert "1 eval rows out of scope: no part of the loss" in found.report.notes


def test_eval_rows_that_are_all_out_of_scope_stop_before_the_training(recipe_for, tokenizer, tmp_path):
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text('{"text": "b", "label": "none of these"}\n')
    recipe = recipe_for(f"data.eval={held_out}", 'classify.out_of_scope_label="none of these"')
    with pytest.raises(DataError, match=r"held-out\.jsonl: every row is out of scope"):
        prepared(recipe, tokenizer, tmp_path)


def test_ten_thousand_labels_are_prepared(recipe_for, tokenizer, tmp_path):
    path = tmp_path / "many.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"text {n}", f"label-{n % 10_000}"] for n in range(20_000))
    held_out = tmp_path / "eval.csv"
    held_out.write_text("text,label\ntext 1,label-1\n")
    found = prepared(recipe_for(f"data.eval={held_out}", source=path), tokenizer, tmp_path)
    assert len(found.labels) == 10_000
    assert set(found.train.counts()) == {2}


def test_folders_of_text_files_are_labels(recipe_for, tokenizer, tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        for name in ("neg", "pos"):
            folder = tmp_path / "reviews" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.txt").write_text(f"{name} review {split} {number}")
    recipe = recipe_for("data.eval_fraction=0.3", source=tmp_path / "reviews")
    assert {example.labels for example in examples(recipe, "test")} == {("neg",), ("pos",)}
    assert len(list(examples(recipe, "test"))) == 4
    assert prepared(recipe, tokenizer, tmp_path).labels == ("neg", "pos")


def test_a_folder_without_data_says_what_would_be_data(recipe_for, tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no data files; known: .*folders of .txt files, one a label"):
        prepared(recipe_for(source=tmp_path / "empty"), tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("part", "rows", "complaint"),
    [
        ("test", [("", "on")], "test.jsonl: no test row has a text"),
        ("eval", [(" ", "on")], "eval.jsonl: no eval row has a text"),
        ("eval", [("dim it", "x" * 500)], r"label 'x{60}\.\.\.' does not occur"),
    ],
)
def test_rows_that_would_stop_a_later_stage_stop_before_training(recipe_for, tmp_path, part, rows, complaint):
    path = tmp_path / f"{part}.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": name}) + "\n" for text, name in rows))
    with pytest.raises(DataError, match=complaint):
        check_labels(recipe_for(f"data.{part}={path}"))


def test_training_rows_without_text_are_named_as_that(recipe_for, tmp_path):
    path = tmp_path / "blank.jsonl"
    path.write_text('{"text": " ", "label": "on"}\n' * 3)
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text('{"text": "turn it on", "label": "on"}\n')
    with pytest.raises(DataError, match="none of the 3 training rows has a text"):
        check_labels(recipe_for(f"data.eval={held_out}", source=path))


def test_a_label_that_utf_8_cannot_hold_is_named_with_its_place(recipe_for, tmp_path):
    path = tmp_path / "half.jsonl"
    path.write_text('{"text": "a", "label": "\\ud800"}\n{"text": "b", "label": "on"}\n')
    with pytest.raises(DataError, match=r"half.jsonl:1: column 'label': holds \\ud800"):
        check_labels(recipe_for(f"data.eval={path}", source=path))
