"""Sample answers side by side: a run's saved answers -> a few rows, with the words marked that differ."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgetune.errors import RunError
from edgetune.report.facts import Piece, Problems, Sample, Shown

MOST_SAMPLES = 8
LONGEST = 600
"""Characters of a text that are shown: bounds the work, which grows with the square, and the page."""
COLUMNS = ("base", "tuned", "bundle")


def read_samples(results: Path, problems: Problems) -> tuple[Sample, ...]:
    """Rows from a run's results/: first those that bundle and fine-tune answer differently, then others, evenly.

    Marked is what differs from the right answer, or from the fine-tune's where rows have none.
    """
    files = {stage: results / f"{stage}-answers.jsonl" for stage in COLUMNS}
    answers = _read_all({stage: file for stage, file in files.items() if file.exists()}, problems)
    if len({len(rows) for rows in answers.values()}) > 1:
        raise ValueError("its files of answers are not of the same rows")
    return _samples(answers, truth="tuned", compared=("tuned", "bundle"))


def read_bench_samples(files: Mapping[str, Path], truth: str | None, problems: Problems) -> tuple[Sample, ...]:
    """Rows from the answers of a bench's targets, by name: first those that targets answer differently, then others.

    Marked is what differs from the right answer, or from that of the target `truth` where rows have none. Targets that
    were scored on other rows than the first become lines of `problems`.
    """
    answers = _read_all(files, problems)
    asked = {name: [_question(row) for row in rows] for name, rows in answers.items()}
    first = next(iter(asked), "")
    for name in [name for name in asked if asked[name] != asked[first]]:
        problems.lines.append(f"{files[name]}: answers other rows than {first}, and is in no sample")
        del answers[name]
    return _samples(answers, truth=truth, compared=tuple(answers))


def choose(answers: Mapping[str, Sequence[Mapping[str, Any]]], compared: Sequence[str]) -> list[int]:
    """The numbers of the rows to show, in order: first those that `compared` answer differently."""
    count = len(next(iter(answers.values())))
    sides = [answers[name] for name in compared if name in answers]
    other = [n for n in range(count) if any(side[n]["answer"] != sides[0][n]["answer"] for side in sides)]
    chosen = evenly(other, MOST_SAMPLES // 2)
    rest = [number for number in range(count) if number not in set(other)] or other
    return sorted({*chosen, *evenly([n for n in rest if n not in chosen], MOST_SAMPLES - len(chosen))})


def evenly(numbers: Sequence[int], most: int) -> list[int]:
    """At most so many of the numbers, from the first to the last."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(place * (len(numbers) - 1) / max(1, most - 1))] for place in range(most)]


def mark(text: str, against: str) -> tuple[Piece, ...]:
    """A text in pieces: words that are not, in this order, in the other text, and what is there in their place."""
    words, others = (re.findall(r"\w+|\s+|[^\w\s]", item) for item in (text, against))
    pieces = []
    for kind, start, end, first, last in difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if start < end:
            pieces.append(Piece("".join(words[start:end]), "same" if kind == "equal" else "added"))
        if kind != "equal" and first < last:
            pieces.append(Piece("".join(others[first:last]), "missing"))
    return tuple(pieces)


def cut(text: str) -> str:
    """A text that is not too long to show."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _samples(
    answers: Mapping[str, Sequence[Mapping[str, Any]]], *, truth: str | None, compared: Sequence[str]
) -> tuple[Sample, ...]:
    if not answers or all(row["answer"] is None for rows in answers.values() for row in rows):
        return ()
    return tuple(_sample(number, answers, truth) for number in choose(answers, compared))


def _sample(number: int, answers: Mapping[str, Sequence[Mapping[str, Any]]], truth: str | None) -> Sample:
    first = next(iter(answers.values()))[number]
    wanted = _text(first.get("labels", first.get("reference")))
    tuned = answers[truth][number]["answer"] if truth is not None and truth in answers else None
    against = _text(tuned) if wanted is None else wanted
    shown = []
    for stage, rows in answers.items():
        row = rows[number]
        text = cut(_text(row["answer"]) or "")
        pieces: tuple[Piece, ...] = (Piece(text, "same"),)
        if "labels" in row:  # whole labels, not the words of their names
            pieces = (Piece(text, "same" if text == against else "added"),)
        elif against is not None:
            pieces = mark(text, cut(against))
        is_right = row.get("correct") if isinstance(row.get("correct"), bool) else None
        is_told = truth == "tuned" and stage == "bundle" and tuned is not None
        same = row["answer"] == tuned if is_told else None
        shown.append(Shown(stage, pieces, is_right, same))
    place = str(first.get("place", "")).replace("\\", "/").rpartition("/")[2]
    return Sample(cut(_question(first)), None if wanted is None else cut(wanted), tuple(shown), place)


def _question(row: Mapping[str, Any]) -> str:
    return str(row.get("text", row.get("prompt", "")))


def _text(value: Any) -> str | None:
    """Words, or labels."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return None if value is None else str(value)


def _read_all(files: Mapping[str, Path], problems: Problems) -> dict[str, list[dict[str, Any]]]:
    """The answers of those files that can be read."""
    found = {name: problems.attempt(str(file), partial(_read, file)) for name, file in files.items()}
    return {name: rows for name, rows in found.items() if rows}


def _read(path: Path) -> list[dict[str, Any]]:
    """Raises RunError for one that is not there, ValueError for a file that holds no answers."""
    if not path.is_file():
        raise RunError(f"{path}: no such file")
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(itertools.islice(file, 100_000), 1):
            row = json.loads(line)
            if not (isinstance(row, dict) and "answer" in row):
                raise ValueError(f"line {number} holds no answer")
            rows.append(row)
    if not rows:
        raise ValueError("it is empty")
    return rows
