"""Rows -> examples: the shapes that fine-tuning data comes in, recognised and made one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgetune.data.files import Row
from edgetune.errors import DataError

Format = Literal["messages", "prompt-completion", "alpaca", "sharegpt", "text"]


@dataclass(frozen=True)
class Message:
    """One turn. `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation, or a plain text with no messages; labels where a classifier is trained."""

    messages: tuple[Message, ...]
    text: str | None
    place: str
    labels: tuple[str, ...] = ()


COLUMNS: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
"""The columns that make a format, in the order in which they are looked for."""
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def detect(row: Row) -> tuple[Format, str]:
    """The format of a source by its first row, and what told it. Raises DataError if no format fits."""
    for name, needed in COLUMNS.items():
        if all(column in row.values for column in needed):
            quoted = " and ".join(f"'{column}'" for column in needed)
            return name, f"column{'s' if len(needed) > 1 else ''} {quoted}"
    raise DataError(
        f"{row.place}: no format has the columns {', '.join(row.values) or '(none)'}",
        cure='name yours in [data], e.g. columns = { prompt = "question", completion = "answer" }',
    )


def to_example(row: Row, form: Format, *, system: str | None = None) -> Example:
    """A row as an example; `system` goes first where the row has no system message. Raises DataError with the place."""
    if form == "text":
        return Example((), text_of(row, "text"), row.place)
    messages = _READERS[form](row)
    if not any(message.role == "assistant" for message in messages):
        raise DataError(f"{row.place}: has no assistant message, so nothing to learn")
    if system is not None and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    return Example(tuple(messages), None, row.place)


def _from_messages(row: Row) -> tuple[Message, ...]:
    return _turns(row, "messages", role_key="role", content_key="content", roles={role: role for role in ROLES})


def _from_sharegpt(row: Row) -> tuple[Message, ...]:
    return _turns(row, "conversations", role_key="from", content_key="value", roles=SHAREGPT_ROLES)


def _from_prompt(row: Row) -> tuple[Message, ...]:
    """Texts, or lists of messages as TRL has them."""
    if isinstance(row.values.get("prompt"), list):
        roles = {role: role for role in ROLES}
        parts = [_turns(row, column, role_key="role", content_key="content", roles=roles) for column in COLUMNS[_PC]]
        return (*parts[0], *parts[1])
    return Message("user", text_of(row, "prompt")), Message("assistant", text_of(row, "completion"))


def _from_alpaca(row: Row) -> tuple[Message, ...]:
    asked = text_of(row, "instruction")
    more = text_of(row, "input") if row.values.get("input") is not None else ""
    if more:
        asked = f"{asked}\n\n{more}"
    return Message("user", asked), Message("assistant", text_of(row, "output"))


_PC: Format = "prompt-completion"
_READERS: dict[Format, Callable[[Row], tuple[Message, ...]]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    _PC: _from_prompt,
}


def text_of(row: Row, column: str) -> str:
    """The text in a column; numbers are written out. Raises DataError with the place for anything else."""
    if column not in row.values:
        raise DataError(f"{row.place}: no column '{column}'", cure=f"columns found: {', '.join(row.values)}")
    value = row.values[column]
    if value is None:
        raise DataError(f"{row.place}: column '{column}' is null", cure="fill it or leave the row out")
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        kind = value if isinstance(value, float) else type(value).__name__
        raise DataError(f"{row.place}: column '{column}' must be a text, not {kind}", cure="write it as a text")
    return encodable(value, f"{row.place}: column '{column}'")


def encodable(text: str, where: str) -> str:
    """The text, if UTF-8 can hold it: JSON can escape half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f"{where}: holds {code}, half of a surrogate pair, which is no character") from None
    return text


def _turns(row: Row, column: str, *, role_key: str, content_key: str, roles: Mapping[str, str]) -> tuple[Message, ...]:
    turns = row.values.get(column)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{row.place}: column '{column}' must be a list of messages that is not empty")
    return tuple(
        _turn(turn, f"{row.place}: {column}[{n}]", role_key, content_key, roles) for n, turn in enumerate(turns)
    )


def _turn(turn: Any, where: str, role_key: str, content_key: str, roles: Mapping[str, str]) -> Message:
    if not isinstance(turn, dict) or role_key not in turn or content_key not in turn:
        raise DataError(f"{where}: must have '{role_key}' and '{content_key}'")
    role, content = turn[role_key], turn[content_key]
    if not isinstance(role, str) or role not in roles:
        raise DataError(f"{where}: unknown role {role!r}", cure=f"known: {', '.join(roles)}")
    if turn.get("tool_calls") or turn.get("weight") == 0:
        raise DataError(f"{where}: tool_calls and weights of messages are not handled", cure="write calls as text")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise DataError(f"{where}: '{content_key}' must be a text; tool calls and pictures are not handled")
    return Message(roles[role], encodable(content, where))
