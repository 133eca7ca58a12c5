"""Folds: every row held out once, labels and rows spread evenly, groups and copies kept together."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from edgetune.data.folds import HELD_OUT, TRAIN, assign, deal, write_fold
from edgetune.data.prepare import examples
from edgetune.errors import DataError, RecipeError
from edgetune.recipe import parse_recipe


def make(tmp_path, rows, *, folds=3, by=None, task="classification"):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    by = f'folds_by = "{by}"\n' if by else ""
    text = f'[model]\nbase = "x"\ntask = "{task}"\n[data]\ntrain = "{path}"\n[evaluate]\nfolds = {folds}\n{by}'
    return parse_recipe(text, source="test")


def labelled(counts, **columns):
    return [
        {"text": f"{label} {n}", "label": label, **{name: of(n) for name, of in columns.items()}}
        for label, count in counts.items()
        for n in range(count)
    ]


def test_labels_and_rows_are_spread_as_evenly_as_can_be(tmp_path):
    dealt = deal(make(tmp_path, labelled({"a": 50, "b": 10, "c": 4}), folds=5))
    sizes = Counter(dealt.folds.tolist())
    assert max(sizes.values()) - min(sizes.values()) <= 1
    for label, least, most in (("a", 10, 10), ("b", 2, 2), ("c", 0, 1)):
        count = [sum(row.labels == (label,) for row in fold_rows(dealt, fold)) for fold in range(5)]
        assert (min(count), max(count)) == (least, most)


def fold_rows(dealt, fold):
    return [row for row, number in zip(dealt.rows, dealt.folds, strict=True) if number == fold]


def test_a_group_is_in_one_fold_and_its_labels_still_spread(tmp_path):
    rows = labelled({"a": 60, "b": 30}, speaker=lambda n: f"speaker {n % 15}")
    dealt = deal(make(tmp_path, rows, by="speaker"))
    speakers = [row["speaker"] for row in rows]
    assert dealt.groups == 15
    assert all(len({fold for fold, who in zip(dealt.folds.tolist(), speakers, strict=True) if who == name}) == 1
               for name in set(speakers))  # fmt: skip
    counts = [Counter(row.labels for row in fold_rows(dealt, fold)) for fold in range(3)]
    assert [(count[("a",)], count[("b",)]) for count in counts] == [(20, 10)] * 3


def test_rows_that_say_the_same_are_never_in_two_folds(tmp_path):
    rows = labelled({"a": 9, "b": 9}) * 3
    dealt = deal(make(tmp_path, rows))
    where = {}
    for row, fold in zip(dealt.rows, dealt.folds.tolist(), strict=True):
        assert where.setdefault(row.text, fold) == fold
    assert dealt.groups == 18


def test_several_labels_a_row_are_spread_too():
    draw = np.random.default_rng(0)
    labels = [tuple(name for name, share in zip("abc", (0.6, 0.3, 0.06), strict=True) if draw.random() < share)
              for _ in range(400)]  # fmt: skip
    folds = assign([[row] for row in range(400)], labels, 4)
    for name in "abc":
        counts = [
            sum(name in row for row, fold in zip(labels, folds, strict=True) if fold == number) for number in range(4)
        ]
        assert max(counts) - min(counts) <= 2


def test_the_seed_decides_and_other_seeds_deal_otherwise():
    groups, labels = [[row] for row in range(60)], [("a",)] * 60
    first, again, other = (assign(groups, labels, 3, seed=seed).tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_each_row_is_in_one_file_of_each_fold(tmp_path):
    pairs = [{"prompt": f"ask {n}", "completion": f"say {n}"} for n in range(20)]
    recipe = make(tmp_path, pairs, task="generation")
    dealt, held = deal(recipe), []
    for fold in range(3):
        write_fold(recipe, dealt, fold, tmp_path / str(fold))
        found = {}
        for name in (TRAIN, HELD_OUT):
            data = f'train = "{tmp_path / str(fold) / name}"\neval = "{tmp_path}/rows.jsonl"\n'
            text = f'[model]\nbase = "x"\n[data]\n{data}'
            found[name] = [row.messages for row in examples(parse_recipe(text, source="test"), "train")]
        assert not set(found[TRAIN]) & set(found[HELD_OUT])
        assert len(found[TRAIN]) + len(found[HELD_OUT]) == 20
        held += found[HELD_OUT]
    assert sorted(held, key=str) == sorted((row.messages for row in dealt.rows), key=str)


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        (labelled({"a": 2, "b": 1}), {"folds": 5}, "3 rows that are not alike, 5 folds want as many at least"),
        (labelled({"a": 9, "b": 1}), {}, "label 'b' is in one group only, so that one fold learns without it"),
        (labelled({"a": 9, "b": 9}), {"by": "who"}, "rows.jsonl:1: no column 'who', which evaluate.folds_by names"),
        (labelled({"a": 9, "b": 9}, who=lambda n: n % 2), {"by": "who"}, "2 groups by 'who', 3 folds want"),
    ],
)
def test_what_cannot_be_dealt_is_told(tmp_path, rows, options, told):
    with pytest.raises(DataError, match=told):
        deal(make(tmp_path, rows, **options))


@pytest.mark.parametrize("line", ["folds = 1", "folds = 2.5", 'folds_by = "a"', 'folds = 3\nfolds_by = ""'])
def test_folds_that_are_none_are_refused(line):
    with pytest.raises(RecipeError):
        parse_recipe(f'[model]\nbase = "x"\n[data]\ntrain = "x"\n[evaluate]\n{line}\n', source="test")
