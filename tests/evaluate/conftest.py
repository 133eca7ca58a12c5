"""Rows to evaluate on, encoded without edgetune.data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgetune.evaluate.rows import EvalRow, EvalSet, Limits, write_rows


def _row(tokenizer, values, place):
    messages = [{"role": "user", "content": values["prompt"]}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(values["completion"] + "<|end|>", add_special_tokens=False)["input_ids"]
    return EvalRow(
        messages=tuple(messages),
        reference=values["completion"],
        prompt_ids=tuple(prompt_ids),
        input_ids=(*prompt_ids, *answer_ids),
        labels=(*[-100] * len(prompt_ids), *answer_ids),
        place=place,
    )


@pytest.fixture(scope="session")
def eval_set(tiny_base, tiny_rows) -> EvalSet:
    """Twelve rows of tiny_rows for tiny_base, scored as JSON."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = [json.loads(line) for line in tiny_rows.read_text(encoding="utf-8").splitlines()[:12]]
    return EvalSet(
        rows=tuple(_row(tokenizer, row, f"rows.jsonl:{number}") for number, row in enumerate(rows, start=1)),
        metric="json",
        limits=Limits(max_new_tokens=12, context_length=512, eos_ids=(tokenizer.eos_token_id,)),
        bootstrap_samples=100,
        confidence=0.95,
        source="rows.jsonl",
        source_rows=64,
        dropped_too_long=0,
    )


@pytest.fixture
def eval_file(eval_set, tmp_path) -> Path:
    """The eval set in a file."""
    write_rows(tmp_path / "rows.json", eval_set)
    return tmp_path / "rows.json"


@pytest.fixture
def changed_file(eval_set, tmp_path):
    """A function that writes the eval set with its first row changed."""

    def write(**changes):
        rows = (dataclasses.replace(eval_set.rows[0], **changes), *eval_set.rows[1:])
        write_rows(tmp_path / "changed.json", dataclasses.replace(eval_set, rows=rows))
        return tmp_path / "changed.json"

    return write
