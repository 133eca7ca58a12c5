"""Which tokens end an answer: edgetune/data/chat.py. How text is rendered: test_encode.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.data.chat import call_end, check_device_text, closing, end_ids, render
from edgetune.data.formats import Example, Message
from edgetune.errors import DataError, ModelError

TEMPLATE = "{% for message in messages %}{{ message['content'] }}"


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


@pytest.mark.parametrize("after", ["<|system|>", " \n<|system|>\n", "<|system|>{% if loop.last %}<|user|>{% endif %}"])
def test_so_does_a_token_that_is_special_in_tokenizer_json_alone(tokenizer: Any, tmp_path: Path, after: str) -> None:
    assert "<|system|>" not in tokenizer.all_special_tokens
    tokenizer.chat_template = TEMPLATE + after + "{% endfor %}"
    wanted = {tokenizer.convert_tokens_to_ids("<|system|>"), tokenizer.eos_token_id}
    assert end_ids(tokenizer, tmp_path, is_chat=True) == tuple(sorted(wanted))


def test_where_a_template_asks_for_a_system_message_the_end_is_found_with_one(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + TEMPLATE
    ) + "<|system|>{% endfor %}"
    assert closing(tokenizer).token == "<|system|>"


def test_without_any_end_token_it_says_what_to_set(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.eos_token = None
    tokenizer.chat_template = TEMPLATE + "\n{% endfor %}"
    with pytest.raises(ModelError, match=r"no end-of-text token is known; set eos_token in tokenizer_config.json"):
        end_ids(tokenizer, tmp_path, is_chat=True)
    tokenizer.chat_template = TEMPLATE + "<|system|>{% endfor %}"
    assert end_ids(tokenizer, tmp_path, is_chat=True) == (tokenizer.convert_tokens_to_ids("<|system|>"),)


CALLS_WRITTEN = (
    "{{% if tools %}}{{{{ tools | tojson }}}}{{% endif %}}{{% for m in messages %}}<{{{{ m.role }}}}>"
    "{{% for call in m.tool_calls or [] %}}{{{{ call.function | tojson }}}}{each}{{% endfor %}}"
    "{{% if m.tool_calls %}}{end}{{% else %}}{{{{ m.content }}}}<|end|>{{% endif %}}{{% endfor %}}{{{{ '{close}' }}}}"
)


@pytest.mark.parametrize(
    ("each", "end", "close", "token"),
    [
        ("", "<|system|>", "", "<|system|>"),
        ("", "<|system|>", "<|user|>", "<|system|>"),
        ("<|user|>", "<|system|>\\n", "", "<|system|>"),
        ("<|user|>", "", "", None),
        ("", "<|end|>", "", "<|end|>"),
        ("", "<|user|>.", "", None),
    ],
)
def test_what_the_template_puts_after_calls_ends_an_answer_too(
    tokenizer: Any, tmp_path: Path, each: str, end: str, close: str, token: str | None
) -> None:
    tokenizer.chat_template = CALLS_WRITTEN.format(each=each, end=end.replace("\\n", "\n"), close=close)
    found = call_end(tokenizer)
    assert (found and tokenizer.convert_ids_to_tokens(found)) == token
    ends = {tokenizer.eos_token_id, closing(tokenizer).token_id, *({found} - {None})}
    assert end_ids(tokenizer, tmp_path, is_chat=True) == tuple(sorted(ends))


def test_a_template_that_writes_no_calls_has_nothing_behind_them(tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE + "<|system|>{% endfor %}"
    assert call_end(tokenizer) is None


def test_a_template_that_hides_answers_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(DataError, match="the chat template does not write answers"):
        closing(tokenizer)


TOOL = {"type": "function", "function": {"name": "lamp", "parameters": {"type": "object", "properties": {}}}}
TOOLS_WRITTEN = "{% if tools %}{{ tools | tojson }}{% endif %}" + TEMPLATE + "<|end|>{% endfor %}"


def test_of_several_templates_that_for_tools_is_taken_where_there_are_tools(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": TEMPLATE + "<|end|>{% endfor %}", "tool_use": TOOLS_WRITTEN}
    asked = [Message("user", "on")]
    assert render(tokenizer, asked) == "on<|end|>"
    assert render(tokenizer, asked, tools=[TOOL]).startswith('[{"type": "function"')
    tokenizer.chat_template = {"rag": TEMPLATE}
    with pytest.raises(DataError, match="none of the tokenizer's chat templates is called default"):
        render(tokenizer, asked, tools=[TOOL])


def test_a_tokenizer_whose_own_code_writes_otherwise_than_its_template_is_refused(tokenizer: Any) -> None:
    example = Example((Message("user", "turn on"), Message("assistant", "ok")), None, "a:1")
    check_device_text(tokenizer, example)

    class Own:
        chat_template, special_tokens_map = tokenizer.chat_template, tokenizer.special_tokens_map

        def apply_chat_template(self, *turns: Any, **options: Any) -> str:
            return tokenizer.apply_chat_template(*turns, **options).replace("on", "off")

    with pytest.raises(DataError, match=r"the tokenizer's own code writes 'ff.* where its chat template"):
        check_device_text(Own(), example)


def test_text_after_an_answer_that_is_no_special_token_ends_nothing(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = TEMPLATE + ".{% endfor %}"
    assert end_ids(tokenizer, tmp_path, is_chat=True) == (tokenizer.eos_token_id,)


def test_a_system_message_that_the_template_does_not_write_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages if m.role in ['user', 'assistant'] %}{{ m.content }}{% endfor %}"
    talk = [Message("user", "on"), Message("assistant", "done")]
    assert render(tokenizer, talk) == "ondone"
    for role in ("system", "developer"):
        with pytest.raises(DataError, match=f"message 1: the role '{role}': the chat template makes no use of this"):
            render(tokenizer, [Message(role, "be brief"), *talk])
