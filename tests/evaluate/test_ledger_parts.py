"""evaluate/ledger.py: steps that were measured on some of the rows only."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetune.evaluate.ledger import make_entries, plain


def write_answers(folder: Path, stage: str, right: list[bool], losses: list[float]) -> Any:
    """A stage's answers, and its result."""
    rows = [
        {"answer": "yes" if correct else "no", "score": float(correct), "loss_sum": loss, "trained_tokens": 4}
        for correct, loss in zip(right, losses, strict=True)
    ]
    (folder / f"{stage}-answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    score = sum(right) / len(right)
    return SimpleNamespace(
        target=SimpleNamespace(name=stage),
        score=SimpleNamespace(
            score=score, loss=sum(losses) / 4 / len(rows), interval=(score, score), confidence=0.95, rows=len(rows)
        ),
        distance=None,
        disk_bytes=1024**2,
    )


@pytest.fixture
def entries(tmp_path: Path) -> list[Any]:
    """Six rows, of which the float graph answered the first, third and fifth: one of them worse than the fine-tune."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    found = [
        ("base", write_answers(tmp_path, "base", [False] * 6, [8.0] * 6)),
        (
            "tuned",
            write_answers(tmp_path, "tuned", [True, False, True, True, True, True], [0.4, 4, 0.4, 0.4, 0.4, 0.4]),
        ),
        ("fp32 ONNX", write_answers(tmp_path, "onnx-fp32", [True, False, True], [0.4, 1.6, 0.4])),
        ("bundle", write_answers(tmp_path, "bundle", [True, False, True, True, True, False], [0.4] * 6)),
    ]
    return make_entries(found, tmp_path, tokenizer_file=tmp_path / "tokenizer.json", base="base")


def test_a_stage_measured_on_all_rows_has_its_own_score(entries: list[Any]) -> None:
    bundle = entries[3]
    assert (bundle.rows, bundle.score, bundle.loss) == (6, pytest.approx(4 / 6), pytest.approx(0.1))
    assert bundle.same_answers == pytest.approx(5 / 6)
    assert bundle.gain_kept == pytest.approx(4 / 5)


def test_a_stage_measured_on_some_rows_is_told_by_its_difference_from_the_fine_tune(entries: list[Any]) -> None:
    part = entries[2]
    assert part.rows == 3
    assert part.interval is None
    assert part.score == pytest.approx(5 / 6 - 1 / 3)
    assert part.loss == pytest.approx(6.0 / 24 + (2.4 - 1.2) / 12)
    assert part.same_answers == pytest.approx(2 / 3)


def test_the_table_says_how_many_rows_each_step_was_measured_on(entries: list[Any]) -> None:
    lines = plain(entries).splitlines()
    assert lines[0].split()[-3] == "rows"
    assert [line.split()[-3] for line in lines[1:]] == ["6", "6", "3", "6"]
