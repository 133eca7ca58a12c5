"""Chat templates: Jinja as transformers runs it, so that a prompt on the device is the prompt of the training.

Source: Hugging Face's documentation "Chat templates"; what is set here is what transformers sets.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from edgetune.errors import PromptError, first_line
from edgetune.runtime.habits import (
    CALL_ID,
    SYSTEM_ROLES,
    Turn,
    asks_for_id,
    habits,
    writes_both,
    writes_developer,
    writes_key,
    writes_reasoning,
    writes_results,
    writes_system,
    writes_tools,
)
from edgetune.runtime.habits import call_texts as call_texts
from edgetune.runtime.habits import forgets_reasoning as forgets_reasoning
from edgetune.runtime.messages import from_json

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys that a message's reasoning has in templates and data."""
READ_KEYS = frozenset(("role", "content", "tool_calls"))
# fmt: off
BOOKKEEPING = frozenset((
    "id", "uuid", "message_id", "parent_id", "conversation_id", "session_id", "turn_identifier", "index", "rank",
    "name", "tool_call_id", "timestamp", "time", "date", "created", "created_at", "status", "finish_reason", "type",
    "source", "metadata", "annotations", "model", "tokens", "token_count", "lang", "language", "country", "state",
    "header", "hashed_ip", "redacted", "toxic",
))
# fmt: on
"""Keys of a message that say nothing of what is asked or answered: a template may make no use of them."""


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}, which marks an answer: the text inside is written as it is."""

    tags = {"generation"}  # noqa: RUF012  as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call of its own body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


class MakeDict:
    """What templates call `dict`: no more than what makes one."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Make a dict of keys with one value, as dict.fromkeys does."""
        return dict.fromkeys(*args)


class PublicNamespace(Namespace):
    """Jinja's namespace, without names that begin with an underscore."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        values = dict(*args, **kwargs)
        for name in values:
            _refuse_private(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, such as {name}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    made.globals |= {"dict": MakeDict(), "namespace": PublicNamespace}
    return made


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and what it may call by name."""

    source: str
    names: tuple[tuple[str, Any], ...] = ()
    """bos_token, eos_token and other special tokens -> their text."""

    def render(
        self,
        messages: Sequence[Turn],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of a conversation. Raises PromptError if the template cannot be read or refuses the messages."""
        try:
            template = _compiled(self.source)
        except Exception as error:  # Jinja has several kinds, and Python's compiler more
            line = getattr(error, "lineno", None)
            reason = first_line(error) + (f" (line {line})" if line else "")
            raise PromptError(f"the chat template cannot be read: {reason}", cure="mend chat_template.jinja") from None
        try:
            return str(
                template.render(
                    messages=[_normal(message) for message in messages],
                    tools=list(tools) if tools else None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **dict(self.names),
                )
            )
        except Exception as error:  # a template may do whatever Python can
            raise PromptError(f"the chat template refuses these messages: {first_line(error)}") from None

    def fitted(self, messages: Sequence[Turn]) -> list[dict[str, Any]]:
        """The messages in the form that this template takes, where templates differ.

        Arguments of calls are objects or JSON text, the content beside calls is none or empty, a developer's message
        is the system's where the template does not know a developer, and calls have ids where it asks for such.
        """
        return _with_ids(self, [_fitted(self, message) for message in messages])

    def refuse_unwritten(self, messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None) -> None:
        """Raises PromptError for what this template makes no use of though it says what is asked, or answered."""
        if tools and not writes_tools(self):
            raise _unwritten("tools", "leave them out, or give a chat template that writes them: chat_template.jinja")
        is_asked = bool(messages) and messages[-1]["role"] != "assistant"
        for number, message in enumerate(messages, start=1):
            where = f"message {number}: "
            _refuse_keys(self, message, where)
            role = message["role"]
            if role == "tool" and not writes_results(self):
                raise _unwritten(f"{where}the role 'tool'", "write the result as a user's message")
            is_led = role in SYSTEM_ROLES and (message.get("content") or "").strip()
            if is_led and not writes_system(self, role, number == 1, is_asked, bool(tools)):
                cure = "write it into the first user's message, or leave it (data.system) out"
                raise _unwritten(f"{where}the role {role!r}", cure)

    def refuse_dropped_content(self, messages: Sequence[Turn]) -> None:
        """Raises PromptError for text beside calls that this template leaves out: it would not be learned."""
        for number, message in enumerate(messages, start=1):
            has_both = message.get("tool_calls") and (message.get("content") or "").strip()
            if has_both and not writes_both(self):
                raise _unwritten(f"message {number}: the content beside tool_calls", "leave it empty")


def _normal(message: Turn) -> dict[str, Any]:
    """A message as transformers hands it to templates: no key is null, and reasoning has both of its usual names."""
    made = {key: value for key, value in message.items() if value is not None}
    reasoning = next((made[key] for key in REASONING if key in made), None)
    return made if reasoning is None else {"thinking": reasoning, **made, "reasoning_content": reasoning}


def _unwritten(what: str, cure: str) -> PromptError:
    return PromptError(f"{what}: the chat template makes no use of this", cure=cure)


def _refuse_keys(template: ChatTemplate, message: Turn, where: str) -> None:
    """Raises PromptError for a key of a message that the template does not read: calls, reasoning, any other."""
    if message.get("tool_calls") and not habits(template).writes_calls:
        raise _unwritten(f"{where}tool_calls", "write the call into the content as text")
    for key in sorted(message.keys() - READ_KEYS - BOOKKEEPING):
        is_read = writes_reasoning(template, key) if key in REASONING else writes_key(template, message["role"], key)
        if message[key] and not is_read:
            raise _unwritten(f"{where}{key}", "write it into the content as text, or leave the key out")


def _fitted(template: ChatTemplate, message: Turn) -> dict[str, Any]:
    made = dict(message)
    if made["role"] == "developer" and not writes_developer(template):
        made["role"] = "system"
    if calls := made.get("tool_calls"):
        as_text = habits(template).arguments_as_text
        made["tool_calls"] = [_call(call, as_text=as_text) for call in calls]
        if made.get("content") is None:
            made["content"] = "" if habits(template).null_as_empty else None
    return made


def _with_ids(template: ChatTemplate, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls, and the results that answer them, with ids that the template takes where it refuses those that they have.

    A result without an id answers the first call that none has answered yet.
    """
    given: dict[str, str] = {}
    waiting: list[str] = []
    numbers = itertools.count(1)
    for message in messages:
        for call in message.get("tool_calls") or ():
            own = call.get("id")
            if not _takes_id(template, own):
                call["id"] = f"call{next(numbers):05}"
            given[str(own)] = call.get("id")
            waiting.append(call.get("id"))
        if message["role"] == "tool":
            own = message.get("tool_call_id")
            first = waiting[0] if waiting else f"call{next(numbers):05}"
            answered = first if own is None else given.get(str(own), first)
            if not _takes_id(template, own):
                message["tool_call_id"] = answered
            waiting = [one for one in waiting if one != answered]
    return messages


def _takes_id(template: ChatTemplate, own: Any) -> bool:
    """Whether the template takes a call with this id, or refuses every call."""
    is_known = isinstance(own, str) and len(own) == len(CALL_ID) and own.isalnum()
    return is_known or not asks_for_id(template, is_absent=own is None)


def _call(call: Mapping[str, Any], *, as_text: bool) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if not as_text:
        arguments = from_json(arguments)
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
