"""evaluate/ledger.py: what each step did, from the answers that evaluations left."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetune.evaluate.distance import Distance
from edgetune.evaluate.ledger import closeness, gains, make_entries, plain, to_json


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    """Each word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "turn", "on", "off", "the", "lamp", "door"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def write_answers(folder: Path, stage: str, answers: list[str], scores: list[float], losses: list[float]) -> None:
    rows = [
        {"answer": answer, "score": score, "loss_sum": loss, "trained_tokens": 4}
        for answer, score, loss in zip(answers, scores, losses, strict=True)
    ]
    (folder / f"{stage}-answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def result(stage: str, score: float, loss: float, kl: float | None = None) -> Any:
    return SimpleNamespace(
        target=SimpleNamespace(name=stage),
        score=SimpleNamespace(score=score, loss=loss, interval=(score, score), confidence=0.95, rows=4),
        distance=None if kl is None else Distance(kl, 0.75, 16),
        disk_bytes=1024**2,
    )


STAGES = ("base", "tuned", "bundle")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Four rows: the base has none right, the fine-tune all, the bundle three."""
    right = ["turn on the lamp", "turn off the lamp", "turn on the door", "the lamp"]
    lost = [*right[:1], "turn off the door", *right[2:]]
    write_answers(tmp_path, "base", ["door"] * 4, [0.0] * 4, [8.0] * 4)
    write_answers(tmp_path, "tuned", right, [1.0] * 4, [0.4] * 4)
    write_answers(tmp_path, "bundle", lost, [1.0, 0.0, 1.0, 1.0], [0.4, 0.8, 0.4, 0.4])
    return tmp_path


def entries(results: Path, tokenizer_file: Path) -> list[Any]:
    found = [result("base", 0.0, 2.0), result("tuned", 1.0, 0.1, 0.0), result("bundle", 0.75, 0.125, 0.01)]
    return make_entries(list(zip(STAGES, found, strict=True)), results, tokenizer_file=tokenizer_file, base="base")


def test_every_column_of_the_bundle_is_what_its_answers_say(results, tokenizer_file):
    bundle = entries(results, tokenizer_file)[-1]
    assert (bundle.score, bundle.loss, bundle.kl, bundle.same_next_token) == (0.75, 0.125, 0.01, 0.75)
    assert bundle.same_answers == 0.75
    assert bundle.gain_kept == pytest.approx(0.75)
    assert bundle.disk_bytes == 1024**2


def test_the_first_difference_is_the_place_of_the_first_other_token(results, tokenizer_file):
    base, tuned, bundle = entries(results, tokenizer_file)
    assert bundle.first_difference == 3  # turn off the [lamp | door]
    assert base.first_difference == 0
    assert tuned.first_difference is None


def test_an_answer_that_goes_on_differs_where_the_other_ends(results, tokenizer_file):
    longer = ["turn on the lamp off", "turn off the lamp", "turn on the door", "the lamp"]
    write_answers(results, "bundle", longer, [0.0, 1.0, 1.0, 1.0], [0.4] * 4)
    assert entries(results, tokenizer_file)[-1].first_difference == 4


def test_base_and_fine_tune_keep_no_share_of_a_gain(results, tokenizer_file):
    assert [entry.gain_kept for entry in entries(results, tokenizer_file)[:2]] == [None, None]


def test_gains_are_told_on_score_and_on_loss(results):
    kept = gains("base", "bundle", results, confidence=0.95, samples=100)
    assert kept.score.kept == pytest.approx(0.75)
    assert kept.loss.kept == pytest.approx((2.0 - 0.125) / (2.0 - 0.1))
    assert not kept.holds(0.97)


def test_the_text_has_a_line_for_each_step_and_the_json_each_number(results, tokenizer_file):
    found = entries(results, tokenizer_file)
    lines = plain(found).splitlines()
    assert [line.split()[0] for line in lines] == ["step", *STAGES]
    assert lines[-1].split()[1:] == ["75.0%", "0.1250", "0.01000", "75.0%", "75.0%", "4", "1.0", "MiB"]
    assert json.loads(json.dumps(to_json(found)))[-1]["first_difference"] == 3


def test_what_is_rejected_has_columns_only_where_something_can_be(results, tokenizer_file):
    found = entries(results, tokenizer_file)
    assert "scope" not in plain(found)
    some = [dataclasses.replace(found[-1], in_scope_accuracy=0.9, out_of_scope_recall=None)]
    assert re.split(" {2,}", plain(some).splitlines()[0])[-3] == "in scope, right"
    assert "90.0%" in plain(some)


def test_a_classifier_s_gain_is_over_calling_every_text_the_commonest_label(tmp_path):
    def write(stage: str, found: list[str]) -> None:
        rows = [
            {"answer": [answer], "labels": [label], "correct": answer == label}
            for answer, label in zip(found, "aaab", strict=True)
        ]
        (tmp_path / f"{stage}-answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("tuned", ["a", "a", "a", "b"])
    write("bundle", ["a", "a", "a", "a"])
    kept = gains(None, "bundle", tmp_path, confidence=0.95, samples=100)
    assert kept.loss is None
    assert kept.score.kept == pytest.approx(0.0)


def test_of_a_classifier_rows_whose_labels_differ_have_changed_right_or_wrong(tmp_path):
    def write(stage: str, found: list[str]) -> None:
        rows = [{"answer": [answer], "labels": ["a"], "correct": answer == "a"} for answer in found]
        (tmp_path / f"{stage}-answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("tuned", ["a", "a", "b", "b"])
    write("bundle", ["a", "b", "c", "b"])
    (tmp_path / "bundle.json").write_text(json.dumps({"distance": {"kl": 0.02, "agreement": 0.5, "tokens": 4}}))
    found = closeness("bundle", tmp_path, confidence=0.95, samples=100)
    assert (found.kl, found.changed_rows, found.rows, found.unit) == (0.02, 0.5, 4, "label")
