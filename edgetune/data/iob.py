"""Slot-filling folders -> rows: seq.in (words), seq.out (IOB tags) and label (intent), one line each.

The layout of ATIS and SNIPS in Goo et al. 2018 (Slot-Gated Modeling, NAACL). An utterance becomes a prompt, its
semantic frame a completion in JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from edgetune.data.files import not_utf8, open_text
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
    for number, line in enumerate(zip_longest(*map(_lines, files(folder))), start=1):
        place = f"{folder / NAMES[0]}:{number}"
        yield _row(line, place), place


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file without blank ones at its end. Raises DataError."""
    blanks = 0
    try:
        with open_text(path) as file:
            for line in file:
                if not line.strip():
                    blanks += 1
                    continue
                yield from [""] * blanks
                blanks = 0
                yield line
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _row(line: tuple[str | None, ...], place: str) -> dict[str, str]:
    if None in line:
        raise DataError(f"{place}: {', '.join(NAMES)} have different numbers of lines")
    words, tags, label = (str(part).split() for part in line)
    if len(words) != len(tags):
        raise DataError(f"{place}: {len(words)} words but {len(tags)} tags")
    if not label:
        raise DataError(f"{place}: has no label")
    if strange := [tag for tag in tags if not re.fullmatch("O|[BI]-.+", tag)]:
        raise DataError(f"{place}: {strange[0]!r} is no IOB tag", cure="tags are O, B-slot and I-slot")
    completion = json.dumps(frame(words, tags, " ".join(label)), ensure_ascii=False)
    return {"prompt": " ".join(words), "completion": completion}


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
