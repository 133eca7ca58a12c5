"""What a bundle of a decoder says in edgetune.json: how messages become text and when an answer ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetune.runtime.manifest import GENAI_CONFIG, TOKENIZER, is_count, is_text, refuse

KEY = "chat"
NEEDED: tuple[str, ...] = (TOKENIZER, GENAI_CONFIG)
_TEXTS = ("template", "bos_token", "eos_token", "system", "tool_template")


@dataclass(frozen=True)
class ChatFormat:
    """How messages become text and when an answer ends."""

    template: str | None
    """Jinja chat template; None where the model was tuned on plain text."""
    bos_token: str | None
    """What the template sees as bos_token."""
    eos_token: str | None
    """What the template sees as eos_token."""
    bos_id: int | None
    """Put before text that is not rendered by the template; None where training put nothing there."""
    eos_ids: tuple[int, ...]
    """Generation stops at any of these."""
    system: str | None = None
    """System message put before messages that have none."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """What else the template sees by name: pad_token, say."""
    tool_template: str | None = None
    """The template in place of `template` where there are tools, if the tokenizer has one of its own for that."""


def read(values: Mapping[str, Any]) -> ChatFormat:
    """Raises ValueError for a value of the wrong kind: eos_ids as text, say, would stop no answer and say nothing."""
    ids = values["eos_ids"]
    chat = ChatFormat(**{**values, "eos_ids": tuple(ids) if isinstance(ids, list) else ids})
    good = {name: isinstance(getattr(chat, name), str | None) for name in _TEXTS}
    named = chat.special_tokens
    good["special_tokens"] = isinstance(named, Mapping) and all(map(is_text, (*named, *named.values())))
    good["bos_id"] = chat.bos_id is None or is_count(chat.bos_id)
    good["eos_ids"] = isinstance(ids, list) and all(map(is_count, ids))
    refuse(KEY, chat, good)
    return chat
