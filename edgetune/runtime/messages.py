"""Messages and tools as people write them -> as chat templates read them. Data files and the device use the same.

OpenAI's words and ShareGPT's; calls of tools in OpenAI's present form, its first one (`function_call`) and ShareGPT's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgetune.errors import PromptError

ROLES = {**{role: role for role in ("system", "developer", "user", "assistant", "tool")}, "function": "tool"}
SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "tool_response"), "tool"),
    "system": "system",
}
WORDS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("role", "content", ROLES),
    ("from", "value", SHAREGPT_ROLES),
)
"""How a message is spelled: the keys of who says it and what is said, and who there is."""
CALLS = ("tool_calls", "function_call")
ARGUMENTS = ("arguments", "parameters", "args", "input")
"""What the arguments of a call are called: by OpenAI and most, by Llama 3.1, by LangChain, by Anthropic."""
PICTURES = ("image", "images", "audio", "audios", "video", "videos")
WEIGHTS = ("weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight")
"""Keys that say whether a message is learned, or how much of it counts."""
EMPTY: tuple[Any, ...] = (None, "", "[]", "{}", [], (), {})


def read_message(turn: Any) -> dict[str, Any]:
    """A message as {"role", "content"} and what else it has that is not null; calls of tools are under tool_calls.

    `content` is a text, or null beside calls. Raises PromptError for a message that cannot be read as it is meant.
    """
    words = turn if isinstance(turn, Mapping) else {}
    has_calls = any(words.get(key) for key in CALLS)
    spelled = next((item for item in WORDS if item[0] in words and (item[1] in words or has_calls)), None)
    if spelled is None:
        raise PromptError(
            "must have 'role' and 'content', or 'from' and 'value'",
            cure=f"it has {', '.join(map(repr, words)) or 'neither'}",
        )
    role_key, content_key, roles = spelled
    role = words[role_key]
    if not isinstance(role, str) or role not in roles:
        raise PromptError(f"unknown role {role!r}", cure=f"known: {', '.join(roles)}")
    _refuse_weights(words, is_answer=roles[role] == "assistant")
    read = (role_key, content_key, *WEIGHTS)
    more = {key: value for key, value in words.items() if value is not None and key not in read}
    if unread := next((key for key in PICTURES if more.get(key)), None):
        raise PromptError(f"{unread}: pictures, sounds and films are not handled", cure="leave the message out")
    content = _text(words.get(content_key), content_key)
    calls = _calls(more.pop("tool_calls", None)) or _calls(more.pop("function_call", None))
    more.pop("function_call", None)
    if role == "function_call":
        calls, content = _calls(content), None
        if not calls:
            raise PromptError("function_call: the value holds no call", cure='write {"name": ..., "arguments": {...}}')
    if calls:
        return {"role": roles[role], "content": content, **more, "tool_calls": calls}
    return {"role": roles[role], "content": content or "", **more}


def _refuse_weights(words: Mapping[str, Any], *, is_answer: bool) -> None:
    """Raises PromptError for an answer that is not to be learned like any other; other messages are not learned."""
    for key in WEIGHTS if is_answer else ():
        if words.get(key) not in (None, 1):
            raise PromptError(
                f"{key} is {json.dumps(words[key], default=str)}: weights of messages are not handled",
                cure="leave the message out, or the key if it is to be learned like any other",
            )


def _text(content: Any, key: str) -> str | None:
    """What is said: a text, or a list of parts that are texts; null parts are none."""
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text") or "") for part in content)
    if content is None or isinstance(content, str):
        return content
    raise PromptError(f"'{key}' must be a text; pictures are not handled")


def _calls(value: Any) -> list[dict[str, Any]]:
    """The calls in a value: a list of them or one, as JSON text too, each with or without OpenAI's frame."""
    value = from_json(value)
    if value in EMPTY:
        return []
    return [_call(call) for call in (value if isinstance(value, list) else [value])]


def _call(call: Any) -> dict[str, Any]:
    frame = {key: value for key, value in call.items() if value is not None} if isinstance(call, Mapping) else {}
    inside = frame.get("function", call)
    if not isinstance(inside, Mapping) or not isinstance(inside.get("name"), str):
        raise PromptError("a call of a tool has no name", cure='write {"name": ..., "arguments": {...}}')
    function = _with_arguments(inside)
    return {"type": "function", **frame, "function": function} if "function" in frame else _framed(function)


def _with_arguments(inside: Mapping[str, Any]) -> dict[str, Any]:
    """A call's name and arguments, these under `arguments` whatever they are called; null or "" are none."""
    spelled = [key for key in ARGUMENTS if key in inside]
    if not spelled:
        raise PromptError(
            f"the call of {inside['name']} has no arguments",
            cure='write {"name": ..., "arguments": {...}}, {} where there are none',
        )
    taken = next((key for key in spelled if inside[key] is not None), spelled[0])
    kept = {key: value for key, value in inside.items() if key == taken or value is not None}
    renamed = {"arguments" if key == taken else key: value for key, value in kept.items()}
    return {**renamed, "arguments": renamed["arguments"] or {}}


def read_tools(value: Any, *, is_bare: bool = False) -> list[dict[str, Any]]:
    """The tools in a value: a list of their schemas, JSON text of it, or a list of JSON texts.

    `is_bare`: schemas without OpenAI's frame get it. Raises PromptError.
    """
    value = from_json(value)
    if value in EMPTY:
        return []
    tools = [from_json(tool) for tool in (value if isinstance(value, list | tuple) else [value])]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise PromptError("tools must be a list of JSON schemas, or JSON text of one", cure="see the README, `tools`")
    return [_framed(tool) if is_bare and "function" not in tool else dict(tool) for tool in tools]


def _framed(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": dict(function)}


def from_json(value: Any) -> Any:
    """What a JSON text of an object or a list holds; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
