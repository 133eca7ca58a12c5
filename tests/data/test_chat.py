"""Which tokens end an answer: edgetune/data/chat.py. How text is rendered: test_encode.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from edgetune.data.chat import end_ids

TEMPLATE = "{% for message in messages %}{{ message['content'] }}"


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base)


def test_the_tokenizers_end_token_ends_an_answer(tokenizer: Any, tmp_path: Path) -> None:
    assert end_ids(tokenizer, tmp_path, is_chat=False) == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("stated", [7, [7], [7, None]])
def test_those_of_generation_config_end_one_too(tokenizer: Any, tmp_path: Path, stated: int | list[int]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    assert end_ids(tokenizer, tmp_path, is_chat=False) == tuple(sorted({7, tokenizer.eos_token_id}))


def test_in_a_chat_what_the_template_puts_after_an_answer_ends_it(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = TEMPLATE + tokenizer.pad_token + "{% endfor %}"
    assert end_ids(tokenizer, tmp_path, is_chat=True) == tuple(sorted({tokenizer.pad_token_id, tokenizer.eos_token_id}))
    assert end_ids(tokenizer, tmp_path, is_chat=False) == (tokenizer.eos_token_id,)


def test_text_after_an_answer_that_is_no_special_token_ends_nothing(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = TEMPLATE + ".{% endfor %}"
    assert end_ids(tokenizer, tmp_path, is_chat=True) == (tokenizer.eos_token_id,)
