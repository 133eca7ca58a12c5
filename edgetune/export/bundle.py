"""What edgetune.json says about a decoder: its grid, how messages become text, when an answer ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.data.chat import chat_template, end_ids, special_tokens
from edgetune.runtime.bundle import ChatFormat


def chat_format(tokenizer: Any, merged: Path, *, is_chat: bool, system: str | None) -> ChatFormat:
    """How training rendered its prompts and ended its answers, from the tokenizer and generation_config.json.

    Raises ModelError if nothing says when to stop.
    """
    eos_ids = end_ids(tokenizer, merged, is_chat=is_chat)
    template = chat_template(tokenizer).source if is_chat else None
    for_tools = chat_template(tokenizer, has_tools=True).source if is_chat else None
    named = special_tokens(tokenizer, f"{template}{for_tools}") if is_chat else {}
    return ChatFormat(
        template=template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        bos_id=tokenizer.bos_token_id,
        eos_ids=eos_ids,
        system=system if is_chat else None,
        special_tokens={name: token for name, token in named.items() if name not in ("bos_token", "eos_token")},
        tool_template=for_tools if for_tools != template else None,
    )
