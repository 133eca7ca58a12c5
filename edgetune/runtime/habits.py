"""What a chat template makes use of, and in which form: tried with messages that are known, for it does not say so."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetune.errors import PromptError

if TYPE_CHECKING:
    from edgetune.runtime.template import ChatTemplate

Turn = Mapping[str, Any]
"""{"role", "content"} and what else a template may read of a message: tool_calls, reasoning_content, name, ..."""
SYSTEM_ROLES = ("system", "developer")
_MARK, _OTHER = "zxqj", "wkvy"
CALL_ID = "zxqjzxqj1"  # nine letters or digits, as Mistral's templates ask for
_TOOL = {
    "type": "function",
    "function": {
        "name": f"{_MARK}tool",
        "description": f"{_MARK}d",
        "parameters": {"type": "object", "properties": {"k": {"type": "string", "description": "d"}}, "required": []},
    },
}
_ASKED: Turn = {"role": "user", "content": "u"}
_ANSWERED: Turn = {"role": "assistant", "content": "a"}
_RESULT: Turn = {"role": "tool", "tool_call_id": CALL_ID, "name": f"{_MARK}called", "content": f"{_MARK}result"}


@dataclass(frozen=True)
class Habits:
    """How a template takes calls of tools."""

    writes_calls: bool
    arguments_as_text: bool
    """The arguments of a call are wanted as JSON text, not as the object that it holds."""
    null_as_empty: bool
    """A message with calls and no content has "" for content, not none."""


def _tried(template: ChatTemplate, *messages: Turn, tools: Sequence[Mapping[str, Any]] | None = None) -> str | None:
    """The text of a conversation; None where the template refuses it."""
    try:
        return template.render(messages, tools=tools)
    except PromptError:
        return None


def _follows(
    template: ChatTemplate,
    conversation: Callable[[str], Sequence[Turn]],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> bool | None:
    """Whether what is written changes with a word of a conversation, be it in capitals or replaced in part.

    None where the template refuses the conversation.
    """
    one, other = (_tried(template, *conversation(word), tools=tools) for word in (_MARK, _OTHER))
    return None if one is None else one != other


def _known_call(*, as_text: bool = False, null_as_empty: bool = False) -> Turn:
    arguments = {f"{_MARK}k": f"{_MARK}v"}
    function = {"name": f"{_MARK}called", "arguments": json.dumps(arguments) if as_text else arguments}
    call = {"id": CALL_ID, "type": "function", "function": function}
    return {"role": "assistant", "content": "" if null_as_empty else None, "tool_calls": [call]}


@functools.lru_cache(maxsize=32)
def habits(template: ChatTemplate) -> Habits:
    """What a template makes of a call that is known, tried in each form; what transformers' documentation says first.

    A form is not taken if the template writes Python's notation of it: {'k': 'v'} is no JSON, None no content.
    """
    for as_text in (False, True):
        null, empty = (
            _tried(template, _ASKED, _known_call(as_text=as_text, null_as_empty=is_empty), tools=[_TOOL]) or ""
            for is_empty in (False, True)
        )
        if _tells_call(null) and null.count("None") <= empty.count("None"):
            return Habits(True, as_text, null_as_empty=False)
        if _tells_call(empty):
            return Habits(True, as_text, null_as_empty=True)
    return Habits(writes_calls=False, arguments_as_text=False, null_as_empty=True)


def _tells_call(text: str) -> bool:
    return f"{_MARK}called" in text and f"{_MARK}v" in text and f"{{'{_MARK}k'" not in text


@dataclass(frozen=True)
class CallTexts:
    """What a template writes of calls that are known."""

    after: str
    """All that stands behind a message with one call, whether or not another message follows."""
    one: str
    two: str
    """Conversations whose last message holds one call, and two; "" where the template refuses that."""


@functools.lru_cache(maxsize=32)
def call_texts(template: ChatTemplate) -> CallTexts | None:
    """None where the template writes no calls."""
    form = habits(template)
    if not form.writes_calls:
        return None
    call = _known_call(as_text=form.arguments_as_text, null_as_empty=form.null_as_empty)
    twice = {**call, "tool_calls": [*call["tool_calls"], *call["tool_calls"]]}
    one, two, followed = (
        _tried(template, _ASKED, *turns, tools=[_TOOL]) or "" for turns in ((call,), (twice,), (call, _RESULT))
    )
    pairs = zip(one, followed or one, strict=False)
    shared = "".join(left for left, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return CallTexts(shared.rpartition(_MARK)[2], one, two)


@functools.lru_cache(maxsize=32)
def asks_for_id(template: ChatTemplate, *, is_absent: bool) -> bool:
    """Whether a call, or its result, is refused without an id, or with one as OpenAI makes them, for that alone."""
    form = habits(template)
    call = _known_call(as_text=form.arguments_as_text, null_as_empty=form.null_as_empty)
    texts = []
    for changed in ({"id": CALL_ID}, {} if is_absent else {"id": f"call_{CALL_ID * 2}"}):
        known = {key: value for key, value in call["tool_calls"][0].items() if key != "id"}
        answered = {**_RESULT, "tool_call_id": changed.get("id")}
        texts.append(_tried(template, _ASKED, {**call, "tool_calls": [{**known, **changed}]}, answered, tools=[_TOOL]))
    return texts[0] is not None and texts[1] is None


@functools.lru_cache(maxsize=32)
def writes_tools(template: ChatTemplate) -> bool:
    """Whether tools come to stand in the prompt."""
    alone = _tried(template, _ASKED, tools=[_TOOL])
    led = _tried(template, {"role": "system", "content": "s"}, _ASKED, tools=[_TOOL])
    return any(text is not None and f"{_MARK}tool" in text for text in (alone, led))


@functools.lru_cache(maxsize=32)
def writes_reasoning(template: ChatTemplate, key: str) -> bool:
    """Whether the reasoning of the last answer is written, if a message has it under this key."""
    return bool(_follows(template, lambda why: (_ASKED, {**_ANSWERED, key: why})))


@functools.lru_cache(maxsize=32)
def forgets_reasoning(template: ChatTemplate, key: str) -> bool:
    """Whether reasoning that is written while its answer is the last is left out once another question follows."""
    is_written = _follows(template, lambda why: (_ASKED, {**_ANSWERED, key: why}, _ASKED, _ANSWERED))
    return writes_reasoning(template, key) and is_written is False


@functools.lru_cache(maxsize=32)
def writes_both(template: ChatTemplate) -> bool:
    """Whether the content of a message is written that holds calls too."""
    call = _known_call(as_text=habits(template).arguments_as_text)
    return bool(_follows(template, lambda said: (_ASKED, {**call, "content": said}), [_TOOL]))


@functools.lru_cache(maxsize=32)
def writes_results(template: ChatTemplate) -> bool:
    """Whether what a tool gave back is written; True where the template refuses it, which it says itself."""
    form = habits(template)
    call = _known_call(as_text=form.arguments_as_text, null_as_empty=form.null_as_empty)
    return _follows(template, lambda result: (_ASKED, call, {**_RESULT, "content": result})) is not False


@functools.lru_cache(maxsize=256)
def writes_key(template: ChatTemplate, role: str, key: str) -> bool:
    """Whether a key of a message changes what is written, whatever its value; of an assistant, beside calls too.

    True where the template refuses such messages, which it says itself.
    """
    form = habits(template)
    call = _known_call(as_text=form.arguments_as_text, null_as_empty=form.null_as_empty)
    before = {"tool": (_ASKED, call), "assistant": (_ASKED,)}.get(role, ())
    after = (_ASKED,) if role in SYSTEM_ROLES else ()
    tried = [_RESULT if role == "tool" else {"role": role, "content": "s"}, *([call] if role == "assistant" else [])]
    texts = [_tried(template, *before, turn, *after, tools=[_TOOL]) for turn in tried]
    if all(text is None for text in texts):
        return True
    return any(
        _tried(template, *before, {**turn, key: value}, *after, tools=[_TOOL]) not in (text, None)
        for turn, text in zip(tried, texts, strict=True)
        for value in (f"{_MARK}w", True, [_TOOL], {f"{_MARK}k": f"{_MARK}v"})
    )


@functools.lru_cache(maxsize=64)
def writes_system(template: ChatTemplate, role: str, is_first: bool, is_asked: bool, has_tools: bool) -> bool:
    """Whether a system message is written, first or later, with or without an answer at the end.

    True where the template refuses such a conversation, which it says itself.
    """
    role = role if role == "system" or writes_developer(template) else "system"
    before = () if is_first else (_ASKED, _ANSWERED)
    after = (_ASKED,) if is_asked else (_ASKED, _ANSWERED)
    tools = [_TOOL] if has_tools else None
    return _follows(template, lambda said: (*before, {"role": role, "content": said}, *after), tools) is not False


@functools.lru_cache(maxsize=32)
def writes_developer(template: ChatTemplate) -> bool:
    """Whether a developer's message is written as such."""
    return bool(_follows(template, lambda said: ({"role": "developer", "content": said}, _ASKED)))
