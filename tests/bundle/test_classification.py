"""bundle/classification.py: the texts for which weights are rounded, and the tokenizer that is shipped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgetune.bundle.classification import draw_texts, save_tokenizer
from edgetune.data.formats import Example


def rows(count: int) -> list[Example]:
    return [Example((), f"text {number}", f"a:{number}") for number in range(count)]


def test_a_draw_repeats_with_its_seed_and_has_each_text_once() -> None:
    drawn = draw_texts(rows(500), 100, seed=1)
    assert drawn == draw_texts(iter(rows(500)), 100, seed=1) != draw_texts(rows(500), 100, seed=2)
    assert len(set(drawn)) == 100


def test_few_rows_are_all_drawn_empty_ones_never() -> None:
    empty = [Example((), " ", "a:1"), Example((), None, "a:2")]
    assert draw_texts([*empty, *rows(3)], 10, seed=0) == ["text 0", "text 1", "text 2"]
    assert draw_texts(rows(3), 0, seed=0) == []


def test_every_row_is_drawn_as_often_as_any_other() -> None:
    """Files are often sorted by label: the first rows must not be the favoured ones."""
    counts = Counter(text for seed in range(2000) for text in draw_texts(rows(20), 5, seed=seed))
    assert len(counts) == 20
    assert all(400 < count < 600 for count in counts.values())  # 500 expected, deviation 19


def test_the_bundle_s_tokenizer_cuts_as_training_did_and_pads_nothing(
    encoder_tokenizer: Callable[[str], Any], tmp_path: Path
) -> None:
    save_tokenizer(encoder_tokenizer("bert"), tmp_path / "tokenizer.json", max_length=40)
    values = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert values["padding"] is None
    assert values["truncation"]["max_length"] == 40
