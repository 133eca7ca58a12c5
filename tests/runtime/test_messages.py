"""Messages and tools as people write them. edgetune/runtime/messages.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgetune.errors import PromptError
from edgetune.runtime.messages import read_message, read_tools

ARGUMENTS = {"room": "bath"}
BARE = {"name": "lamp", "arguments": ARGUMENTS}
CALL = {"type": "function", "function": BARE}


@pytest.mark.parametrize(
    ("turn", "calls"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, [CALL]),
        ({"role": "assistant", "tool_calls": [CALL]}, [CALL]),
        ({"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])}, [CALL]),
        ({"role": "assistant", "content": None, "tool_calls": [BARE]}, [CALL]),
        ({"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "1"}]}, [{**CALL, "id": "1"}]),
        ({"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": None}]}, [CALL]),
        ({"role": "assistant", "content": None, "function_call": BARE, "tool_calls": None}, [CALL]),
        ({"from": "function_call", "value": json.dumps(BARE)}, [CALL]),
        ({"from": "function_call", "value": json.dumps([BARE, BARE])}, [CALL, CALL]),
        ({"from": "function_call", "value": json.dumps({"name": "lamp", "parameters": ARGUMENTS})}, [CALL]),
        ({"role": "assistant", "tool_calls": [{"name": "lamp", "args": ARGUMENTS, "arguments": None}]}, [CALL]),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "lamp", "input": ARGUMENTS}}]}, [CALL]),
        (
            {"role": "assistant", "tool_calls": [{"name": "lamp", "arguments": None}]},
            [{"type": "function", "function": {"name": "lamp", "arguments": {}}}],
        ),
    ],
)
def test_calls_in_every_spelling_are_one(turn: Any, calls: list) -> None:
    assert read_message(turn) == {"role": "assistant", "content": None, "tool_calls": calls}


@pytest.mark.parametrize(
    ("turn", "read"),
    [
        ({"role": "function", "name": "lamp", "content": "{}"}, {"role": "tool", "content": "{}", "name": "lamp"}),
        ({"from": "observation", "value": "ok"}, {"role": "tool", "content": "ok"}),
        ({"role": "developer", "content": "be brief"}, {"role": "developer", "content": "be brief"}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        ({"role": "user", "content": "a", "name": None, "tool_calls": None}, {"role": "user", "content": "a"}),
        ({"role": "assistant", "content": "a", "tool_calls": [], "weight": 1}, {"role": "assistant", "content": "a"}),
        ({"role": "assistant", "content": "a", "train": True, "loss": 1.0}, {"role": "assistant", "content": "a"}),
        ({"role": "user", "content": "a", "train": False, "weight": 0}, {"role": "user", "content": "a"}),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "so"},
            {"role": "assistant", "content": "a", "reasoning_content": "so"},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": None}]},
            {"role": "user", "content": "a"},
        ),
    ],
)
def test_a_message_keeps_what_it_says_and_nothing_that_is_null(turn: Any, read: dict) -> None:
    assert read_message(turn) == read


@pytest.mark.parametrize(
    ("turn", "complaint"),
    [
        ("hi", "must have 'role' and 'content', or 'from' and 'value'; it has neither"),
        ({"role": "robot", "content": "a"}, "unknown role 'robot'; known: system"),
        ({"role": "user", "content": [{"type": "image"}]}, "'content' must be a text; pictures are not handled"),
        ({"role": "user", "content": "a", "images": ["x"]}, "images: pictures, sounds and films are not handled"),
        ({"role": "assistant", "content": "a", "weight": 0}, "weights of messages are not handled; leave the message"),
        ({"role": "assistant", "content": "a", "weight": 0.5}, "weight is 0.5: weights of messages are not handled"),
        ({"role": "assistant", "content": "a", "train": False}, "train is false: weights of messages are not handled"),
        ({"from": "gpt", "value": "a", "loss_mask": 0}, "loss_mask is 0: weights of messages are not handled"),
        ({"role": "assistant", "content": "a", "loss": "no"}, 'loss is "no": weights of messages are not handled'),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "a call of a tool has no name; write"),
        ({"role": "assistant", "tool_calls": [{"name": "lamp"}]}, "the call of lamp has no arguments; write"),
        ({"from": "function_call", "value": ""}, "function_call: the value holds no call"),
        ({"from": "function_call", "value": "lamp()"}, "a call of a tool has no name"),
    ],
)
def test_a_message_that_cannot_be_read_as_it_is_meant_is_refused(turn: Any, complaint: str) -> None:
    with pytest.raises(PromptError) as refused:
        read_message(turn)
    assert complaint in str(refused.value)


TOOL = {"type": "function", "function": {"name": "lamp"}}


@pytest.mark.parametrize("value", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], (TOOL,), TOOL, json.dumps(TOOL)])
def test_tools_are_a_list_of_schemas_however_they_are_written(value: Any) -> None:
    assert read_tools(value) == [TOOL]
    assert read_tools(value, is_bare=True) == [TOOL]


def test_schemas_without_a_frame_get_one_where_the_format_has_none() -> None:
    assert read_tools([TOOL["function"]], is_bare=True) == [TOOL]
    assert read_tools([TOOL["function"]]) == [TOOL["function"]]


@pytest.mark.parametrize("value", [None, "", "[]", [], (), {}])
def test_no_tools_are_none(value: Any) -> None:
    assert read_tools(value) == []


@pytest.mark.parametrize("value", ["lamp", ["lamp"], 3, "[1]"])
def test_what_is_no_schema_is_refused(value: Any) -> None:
    with pytest.raises(PromptError, match="tools must be a list of JSON schemas"):
        read_tools(value)
