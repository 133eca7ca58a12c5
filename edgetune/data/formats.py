"""Rows -> examples: the shapes that fine-tuning data comes in, recognised and made one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from edgetune.data.files import Row
from edgetune.errors import DataError, PromptError
from edgetune.runtime.messages import PICTURES, read_message, read_tools

Format = Literal["messages", "prompt-completion", "alpaca", "sharegpt", "text"]


@dataclass(frozen=True)
class Message:
    """One turn. `role` is system, developer, user, assistant or tool."""

    role: str
    content: str
    """What is said; "" where a message holds calls of tools alone."""
    more: str = ""
    """JSON of what else the chat template is to read: tool_calls, reasoning_content, ...; "" where there is nothing."""

    @property
    def turn(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        return {"role": self.role, "content": self.content, **(json.loads(self.more) if self.more else {})}


@dataclass(frozen=True)
class Example:
    """A conversation, or a plain text with no messages; labels where texts are labelled."""

    messages: tuple[Message, ...]
    text: str | None
    place: str
    labels: tuple[str, ...] = ()
    unanswered: int = 0
    """Last turns that were left out because no answer follows them: nothing of them is learned or scored."""
    tools_json: str = ""
    """JSON of the tools that the assistant may call; "" where there are none."""

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The messages as chat templates take them."""
        return [message.turn for message in self.messages]

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The schemas of the tools."""
        return list(json.loads(self.tools_json)) if self.tools_json else []


COLUMNS: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
"""The columns that make a format, in the order in which they are looked for."""
SINGULAR = "conversation"
"""What some call ShareGPT's column."""
SYSTEM_COLUMNS, HISTORY_COLUMN = ("system", "system_prompt"), "history"
"""Beside the columns of a format: the row's system message; earlier turns, as pairs of a question and its answer."""
LABEL_COLUMNS = ("label", "kto_tag", "desirable")
"""Of a preference row: whether its answer is a good one."""
FALSE = ("false", "no", "0", "0.0")
TOOLS_COLUMN, FUNCTIONS_COLUMN = "tools", "functions"
"""Schemas of the tools that the assistant may call; in the second, that of OpenAI's first form, they have no frame."""
PREFERENCE = "a row with a chosen and a rejected answer is one of preferences"
UNREAD_COLUMNS = {
    **dict.fromkeys(("chosen", "rejected", "chosen_response", "rejected_response"), PREFERENCE),
    **dict.fromkeys(PICTURES, "pictures, sounds and films are not handled"),
}
"""What would change what is learned, and why it is refused rather than left out."""


def detect(row: Row) -> tuple[Format, str]:
    """The format of a source by its first row, and what told it. Raises DataError if no format fits."""
    for name, needed in COLUMNS.items():
        if all(column in row.values for column in needed):
            quoted = " and ".join(f"'{column}'" for column in needed)
            return name, f"column{'s' if len(needed) > 1 else ''} {quoted}"
    if SINGULAR in row.values:
        return "sharegpt", f"column '{SINGULAR}'"
    raise DataError(
        f"{row.place}: no format has the columns {', '.join(row.values) or '(none)'}",
        cure='name yours in [data], e.g. columns = { prompt = "question", completion = "answer" }',
    )


def to_example(row: Row, form: Format, *, system: str | None = None) -> Example:
    """A row as an example; `system` goes first where the row has no system message. Raises DataError with the place."""
    if form == "text":
        return Example((), text_of(row, "text"), row.place)
    _refuse_unread(row)
    messages = _after_history(row, _READERS[form](row))
    answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise DataError(f"{row.place}: has no assistant message, so nothing to learn")
    end = answers[-1] + 1
    own = next((column for column in SYSTEM_COLUMNS if row.values.get(column) not in (None, "")), None)
    said = system if own is None else text_of(row, own)
    if said is not None and messages[0].role not in ("system", "developer"):
        messages, end = (Message("system", said), *messages), end + 1
    tools = _tools(row, is_bare=form == "sharegpt")
    return Example(tuple(messages[:end]), None, row.place, unanswered=len(messages) - end, tools_json=tools)


def _tools(row: Row, *, is_bare: bool) -> str:
    """JSON of the row's tools, "" where it has none. Raises DataError."""
    for column in (TOOLS_COLUMN, FUNCTIONS_COLUMN):
        try:
            tools = read_tools(row.values.get(column), is_bare=is_bare or column == FUNCTIONS_COLUMN)
        except PromptError as error:
            raise DataError(f"{row.place}: column '{column}': {error.message}", cure=error.cure) from None
        if tools:
            return _json(tools, f"{row.place}: column '{column}'")
    return ""


def _json(value: Any, where: str) -> str:
    """A value as JSON text. Raises DataError if UTF-8 cannot hold it, or JSON."""
    try:
        return encodable(json.dumps(value, ensure_ascii=False), where)
    except TypeError as error:  # a date in a parquet file, say
        raise DataError(f"{where}: {error}", cure="write it as a text") from None


def _refuse_unread(row: Row) -> None:
    """Raises DataError for a row of which a part would be dropped that says what is to be learned."""
    for column, reason in UNREAD_COLUMNS.items():
        if row.values.get(column) not in (None, [], "", "[]", {}):
            raise DataError(
                f"{row.place}: column '{column}': {reason}", cure="leave the column out, or the rows with it"
            )
    for column in LABEL_COLUMNS:
        if column in row.values and str(row.values[column]).strip().lower() in FALSE:
            raise DataError(
                f"{row.place}: {column} is {row.values[column]}, which marks a bad answer: it would be learned as good",
                cure="keep the rows whose label is true, or leave the column out if it says something else",
            )


def columns_left_out(row: Row, form: Format) -> tuple[str, ...]:
    """Names of a row's columns that hold something and that nothing of an example is read from."""
    read = {*COLUMNS[form], SINGULAR if form == "sharegpt" else "", "input" if form == "alpaca" else ""}
    if form != "text":
        read |= {*SYSTEM_COLUMNS, HISTORY_COLUMN, *LABEL_COLUMNS, TOOLS_COLUMN, FUNCTIONS_COLUMN}
    return tuple(name for name, value in row.values.items() if name not in read and value not in (None, "", [], {}))


def _from_messages(row: Row) -> tuple[Message, ...]:
    return _turns(row, "messages")


def _from_sharegpt(row: Row) -> tuple[Message, ...]:
    return _turns(row, SINGULAR if SINGULAR in row.values and "conversations" not in row.values else "conversations")


def _from_prompt(row: Row) -> tuple[Message, ...]:
    """Texts, or lists of messages as TRL has them."""
    if isinstance(row.values.get("prompt"), list):
        parts = [_turns(row, column) for column in COLUMNS[_PC]]
        return (*parts[0], *parts[1])
    return Message("user", text_of(row, "prompt")), Message("assistant", text_of(row, "completion"))


def _from_alpaca(row: Row) -> tuple[Message, ...]:
    asked = text_of(row, "instruction")
    more = text_of(row, "input") if row.values.get("input") is not None else ""
    if more:
        asked = f"{asked}\n\n{more}"
    return Message("user", asked), Message("assistant", text_of(row, "output"))


def _after_history(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages with the row's earlier turns before them, after a system message."""
    start = 1 if messages and messages[0].role in ("system", "developer") else 0
    return (*messages[:start], *_history(row), *messages[start:])


def _history(row: Row) -> tuple[Message, ...]:
    """The earlier turns of a row: [[question, answer], ...]."""
    pairs = row.values.get(HISTORY_COLUMN) or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError(f"{row.place}: column '{HISTORY_COLUMN}' must be a list of pairs, a question and its answer")
    turns = []
    for number, pair in enumerate(pairs):
        for role, text in zip(("user", "assistant"), pair, strict=True):
            if not isinstance(text, str):
                raise DataError(f"{row.place}: {HISTORY_COLUMN}[{number}]: must hold two texts")
            turns.append(Message(role, encodable(text, f"{row.place}: {HISTORY_COLUMN}[{number}]")))
    return tuple(turns)


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


def _turns(row: Row, column: str) -> tuple[Message, ...]:
    """The messages in a column, each in the words of OpenAI's or of ShareGPT's."""
    turns = row.values.get(column)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{row.place}: column '{column}' must be a list of messages that is not empty")
    return tuple(_turn(turn, f"{row.place}: {column}[{n}]") for n, turn in enumerate(turns))


def _turn(turn: Any, where: str) -> Message:
    try:
        read = read_message(turn)
    except PromptError as error:
        raise DataError(f"{where}: {error.message}", cure=error.cure) from None
    role, content = read.pop("role"), read.pop("content")
    if content is None:
        read["content"] = None
    return Message(role, encodable(content or "", where), _json(read, where) if read else "")
