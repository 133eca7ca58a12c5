"""Slot-filling folders -> rows: seq.in (words), seq.out (IOB tags) and label (intent), one line each.

The layout of ATIS and SNIPS in Goo et al. 2018 (Slot-Gated Modeling, NAACL). An utterance becomes a prompt, its
semantic frame a completion in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from edgetune.errors import DataError

NAMES = ("seq.in", "seq.out", "label")


def is_iob(folder: Path) -> bool:
    """Whether a folder holds the three files."""
    return all((folder / name).is_file() for name in NAMES)


def files(folder: Path) -> tuple[Path, ...]:
    """The three files of a folder."""
    return tuple(folder / name for name in NAMES)


def read(folder: Path) -> Iterator[tuple[dict[str, str], str]]:
    """({"prompt", "completion"}, place) for each line. Raises DataError if the files do not fit one another."""
    words_file, tags_file, label_file = files(folder)
    with (
        words_file.open(encoding="utf-8") as words,
        tags_file.open(encoding="utf-8") as tags,
        label_file.open(encoding="utf-8") as labels,
    ):
        for number, line in enumerate(zip_longest(words, tags, labels), start=1):
            place = f"{words_file}:{number}"
            if None in line:
                raise DataError(f"{place}: {', '.join(NAMES)} have different numbers of lines")
            texts, marks, label = (part.split() for part in line)
            if len(texts) != len(marks):
                raise DataError(f"{place}: {len(texts)} words but {len(marks)} tags")
            completion = json.dumps(frame(texts, marks, " ".join(label)), ensure_ascii=False)
            yield {"prompt": " ".join(texts), "completion": completion}, place


def frame(words: list[str], tags: list[str], intent: str) -> dict[str, Any]:
    """Words and their IOB tags -> {"intent", "slots"}: slots in order of appearance, a list where one occurs twice."""
    spans: list[tuple[str, list[str]]] = []
    open_slot = None
    for word, tag in zip(words, tags, strict=True):
        mark, _, slot = tag.partition("-")
        if mark == "O":
            open_slot = None
        elif mark == "I" and slot == open_slot:
            spans[-1][1].append(word)
        else:
            spans.append((slot, [word]))
            open_slot = slot
    slots: dict[str, Any] = {}
    for slot, span in spans:
        text = " ".join(span)
        if slot not in slots:
            slots[slot] = text
        else:
            earlier = slots[slot]
            slots[slot] = [*earlier, text] if isinstance(earlier, list) else [earlier, text]
    return {"intent": intent, "slots": slots}
