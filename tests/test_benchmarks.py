"""What benchmarks make of the public data sets before they measure."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import agree, banking77, busy_child, classify_throughput, sms_spam


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """120 texts of four labels, sorted by label."""
    path = tmp_path / "all.csv"
    lines = [f'"text {number}, asked",label {number // 30}' for number in range(120)]
    path.write_text("\n".join(["text,category", *lines]) + "\n", encoding="utf-8")
    return path


def test_few_shot_rows_are_so_many_of_each_label_and_those_of_the_seed(rows: Path, tmp_path: Path) -> None:
    first, again, other = (
        read(banking77._draw(rows, tmp_path / "made" / f"{name}.csv", 5, seed))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert Counter(row["category"] for row in first) == {f"label {number}": 5 for number in range(4)}
    assert all(row in read(rows) for row in first)
    assert len({row["text"] for row in first}) == 20
    assert first == again
    assert first != other


def test_a_label_with_fewer_rows_than_shots_keeps_them_all(rows: Path, tmp_path: Path) -> None:
    drawn = read(banking77._draw(rows, tmp_path / "drawn.csv", 50, 0))
    assert sorted(row["text"] for row in drawn) == sorted(row["text"] for row in read(rows))


def test_throughput_is_measured_on_rows_apart_from_those_learned(rows: Path, tmp_path: Path) -> None:
    counts = classify_throughput._draw(rows, tmp_path, 40)
    train, held_out = read(tmp_path / "train.csv"), read(tmp_path / "eval.csv")
    assert counts == {"train": 40, "eval": len(held_out)} == {"train": len(train), "eval": 80}
    assert not {row["text"] for row in train} & {row["text"] for row in held_out}


def test_eval_rows_of_a_label_that_was_not_drawn_are_left_out(rows: Path, tmp_path: Path) -> None:
    counts = classify_throughput._draw(rows, tmp_path, 1)
    (label,) = {row["category"] for row in read(tmp_path / "train.csv")}
    assert {row["category"] for row in read(tmp_path / "eval.csv")} == {label}
    assert counts == {"train": 1, "eval": 29}


def test_messages_are_split_once_for_all_with_copies_together(tmp_path: Path) -> None:
    messages = [("spam" if n % 5 == 0 else "ham", f'message "{n}') for n in range(200)]
    source = tmp_path / "sms.tsv"
    source.write_text("".join(f"{label}\t{text}\n" for label, text in [*messages, *messages[:40]]), encoding="utf-8")
    counts = sms_spam.split(source, tmp_path / "parts")
    parts = {name: read(tmp_path / "parts" / f"{name}.csv") for name in sms_spam.SHARES}
    texts = {name: {row["text"] for row in found} for name, found in parts.items()}
    assert {name: len(found) for name, found in texts.items()} == {"train": 140, "eval": 20, "test": 40}
    assert len(set.union(*texts.values())) == 200
    assert sum(map(len, parts.values())) == 240
    for name, found in parts.items():
        assert counts[name] == {label: sum(row["label"] == label for row in found) for label in ("ham", "spam")}
    assert sms_spam.split(source, tmp_path / "again") == counts
    assert read(tmp_path / "again" / "test.csv") == parts["test"]


def test_the_right_answer_of_a_question_stands_once_among_four_others() -> None:
    answers = [f"answer {number % 7}" for number in range(20)]
    for number, answer in enumerate(answers):
        choices = agree._choices(answers, number)
        assert len(set(choices)) == 4
        assert choices[number % 4] == answer


def test_how_far_off_a_number_is_is_a_share_of_its_reference() -> None:
    assert agree.Check("peak memory", "bundle", 103.0, 100.0).off == pytest.approx(0.03)
    assert agree.Check("perplexity", "merged", 1.0, -2.0).off == pytest.approx(1.5)


@pytest.mark.slow
@pytest.mark.parametrize("work", ["training step", "repair step", "torch answers"])
def test_work_that_is_measured_beside_busy_processes_runs(work: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)  # its recipe is one of recipes/
    assert busy_child.WORKS[work]("-", tmp_path) > 0
