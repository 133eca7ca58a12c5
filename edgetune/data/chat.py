"""Conversations -> text, by the tokenizer's own chat template or a documented default; and what ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetune.data.formats import Message
from edgetune.errors import DataError
from edgetune.model.base import read_config

DEFAULT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}### {{ message['role'] }}\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}### assistant\n{% endif %}"
)
"""For tokenizers without a template: plain text markers that need no new tokens; every turn ends with eos_token."""


def ensure_chat_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the default one; whether it had none.

    Raises DataError if it has no eos_token either.
    """
    if tokenizer.chat_template:
        return False
    if not tokenizer.eos_token:
        raise DataError(
            "the tokenizer has neither a chat template nor an eos_token", cure="set one in tokenizer_config.json"
        )
    tokenizer.chat_template = (
        DEFAULT_TEMPLATE.replace("{{ bos_token }}", "") if not tokenizer.bos_token else DEFAULT_TEMPLATE
    )
    return True


def render(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    """The text of a conversation; with add_generation_prompt it ends where the assistant's answer begins.

    Raises DataError if the template refuses the messages (two user turns in a row, say).
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt))
    except Exception as error:  # jinja2 and templates raise what they like
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"the chat template refuses these messages: {reason}") from None


def end_ids(tokenizer: Any, folder: Path, *, is_chat: bool) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's, generation_config.json's, and what the template puts after one."""
    found = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        stated = read_config(folder, "generation_config.json").get("eos_token_id")
        found |= set(stated) if isinstance(stated, list) else {stated}
    if is_chat and tokenizer.chat_template:
        found.add(_turn_end(tokenizer))
    return tuple(sorted(token for token in found if token is not None))


def _turn_end(tokenizer: Any) -> int | None:
    """The special token right after an assistant's message, if the template puts one there."""
    mark = "zxqj"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text.rpartition(mark)[2], add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.all_special_ids else None
