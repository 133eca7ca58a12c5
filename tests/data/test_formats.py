"""Rows to examples: formats recognised, and rows that cannot be one."""

from __future__ import annotations

import json

import pytest

from edgetune.data.formats import columns_left_out, detect, to_example
from edgetune.data.read import Row
from edgetune.errors import DataError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
SAME = {
    "messages": {"messages": CHAT},
    "sharegpt": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
    "alpaca": {"instruction": "hi", "input": "", "output": "ho"},
    "prompt-completion": {"prompt": "hi", "completion": "ho"},
}


def example(values, form=None, **more):
    row = Row(values, "a.jsonl:1")
    return to_example(row, form or detect(row)[0], **more)


@pytest.mark.parametrize("form", SAME)
def test_a_format_is_recognised_by_its_columns_and_gives_the_same_conversation(form):
    assert detect(Row(SAME[form], "a:1"))[0] == form
    turns = [(message.role, message.content) for message in example(SAME[form]).messages]
    assert turns == [("user", "hi"), ("assistant", "ho")]


def test_the_column_conversation_is_read_as_conversations_is():
    for turns in (SAME["sharegpt"]["conversations"], CHAT):
        assert detect(Row({"conversation": turns}, "a:1")) == ("sharegpt", "column 'conversation'")
        assert example({"conversation": turns}) == example(SAME["sharegpt"])
    both = {"conversation": "a topic", **SAME["sharegpt"]}
    assert example(both) == example(SAME["sharegpt"])


def test_a_text_column_is_plain_text():
    found = example({"text": "once upon a time"})
    assert (found.text, found.messages) == ("once upon a time", ())


def test_prompt_and_completion_may_be_messages_as_trl_has_them():
    assert len(example({"prompt": CHAT[:1], "completion": CHAT[1:]}).messages) == 2


def test_numbers_serve_as_texts():
    assert example({"prompt": "2 + 2", "completion": 4}).messages[1].content == "4"


def test_the_system_message_goes_first_only_where_there_is_none():
    assert example(SAME["alpaca"], system="be brief").messages[0].content == "be brief"
    own = {"messages": [{"role": "system", "content": "be long"}, *CHAT]}
    assert [message.role for message in example(own, system="be brief").messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize("form", SAME)
def test_the_row_s_own_system_column_goes_first(form):
    found = example({**SAME[form], "system": "be quick"}, system="be brief")
    assert (found.messages[0].role, found.messages[0].content) == ("system", "be quick")
    assert example({**SAME[form], "system": None}, system="be brief").messages[0].content == "be brief"


def test_history_and_a_system_prompt_are_read_beside_any_format():
    history = {"history": [["one", "two"]], "system_prompt": "s"}
    for values in (SAME["prompt-completion"], SAME["messages"]):
        plain, found = example(values).messages, example({**values, **history}).messages
        assert [(turn.role, turn.content) for turn in found[:3]] == [
            ("system", "s"),
            ("user", "one"),
            ("assistant", "two"),
        ]
        assert found[3:] == plain


def test_columns_that_nothing_is_read_from_are_named():
    values = {"prompt": "a", "completion": "b", "context": "c", "id": 7, "empty": "", "system": "s", "input": "i"}
    assert columns_left_out(Row(values, "a.jsonl:1"), "prompt-completion") == ("context", "id", "input")
    assert columns_left_out(Row({"text": "a", "tools": "[]"}, "a.jsonl:1"), "text") == ("tools",)


def test_the_history_of_an_alpaca_row_stands_before_its_question():
    found = example({**SAME["alpaca"], "history": [["one", "two"], ["three", "four"]], "system": "s"})
    assert [message.content for message in found.messages] == ["s", "one", "two", "three", "four", "hi", "ho"]
    assert example({**SAME["alpaca"], "history": []}).messages == example(SAME["alpaca"]).messages


def test_messages_may_be_spelled_either_way_in_either_column():
    other = SAME["sharegpt"]["conversations"]
    for values in ({"messages": other}, {"conversations": CHAT}):
        assert [(message.role, message.content) for message in example(values).messages] == [
            ("user", "hi"),
            ("assistant", "ho"),
        ]


def test_a_developer_is_one_and_says_what_a_system_message_says():
    found = example({"messages": [{"role": "developer", "content": "be brief"}, *CHAT]}, system="be long")
    assert [message.role for message in found.messages] == ["developer", "user", "assistant"]


CALL = {"name": "lamp", "arguments": {"room": "bath"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]}
TOOL = {"type": "function", "function": {"name": "lamp", "parameters": {}}}


def test_tools_and_calls_are_read_alike_from_every_format():
    asked, result, said = {"role": "user", "content": "on"}, {"role": "tool", "content": "ok"}, CHAT[1]
    new = example({"messages": [asked, CALLED, result, said], "tools": [TOOL]})
    assert new.turns == [asked, CALLED, result, said]
    assert new.tools == [TOOL]
    old = [asked, {"role": "assistant", "content": None, "function_call": CALL}, {**result, "role": "function"}, said]
    spoken = [("human", "on"), ("function_call", json.dumps(CALL)), ("observation", "ok"), ("gpt", "ho")]
    rows = (
        {"messages": [asked, CALLED, result, said], "tools": json.dumps([TOOL])},
        {"messages": old, "functions": [TOOL["function"]]},
        {
            "conversations": [{"from": who, "value": what} for who, what in spoken],
            "tools": json.dumps([TOOL["function"]]),
        },
        {"prompt": [asked, CALLED, result], "completion": [said], "tools": [TOOL]},
    )
    for row in rows:
        assert (example(row).messages, example(row).tools) == (new.messages, [TOOL])


def test_reasoning_and_names_reach_the_template():
    turns = [{**CHAT[0], "name": "anna"}, {**CHAT[1], "reasoning_content": "so"}]
    assert example({"messages": turns}).turns == turns


def test_a_null_content_is_no_text():
    assert example({"messages": [CHAT[0], {"role": "assistant", "content": None}]}).messages[1].content == ""


def test_an_absent_text_in_a_list_of_parts_is_no_text():
    parts = [{"type": "text", "text": "hi"}, {"type": "text", "text": None}, {"type": "text"}]
    assert example({"messages": [{"role": "user", "content": parts}, CHAT[1]]}).messages[0].content == "hi"


def test_turns_after_the_last_answer_are_left_out_and_counted():
    found = example({"messages": [*CHAT, {"role": "user", "content": "thanks"}]})
    assert ([message.content for message in found.messages], found.unanswered) == (["hi", "ho"], 1)
    assert example(SAME["messages"]).unanswered == 0


def test_rows_whose_label_is_a_good_one_and_empty_columns_are_read():
    assert example({**SAME["prompt-completion"], "label": True, "tools": None, "chosen": []}).messages


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"question": "a", "answer": "b"}, "no format has the columns question, answer; name yours"),
        ({"messages": []}, "must be a list of messages that is not empty"),
        ({"messages": "hi"}, "must be a list of messages"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "has no assistant message"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, r"messages\[0\]: unknown role 'robot'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: must have 'role' and 'content'"),
        ({"messages": [{"role": "assistant", "content": {"a": 1}}]}, "must be a text"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown role 'alien'"),
        ({"prompt": "a", "completion": None}, "column 'completion' is null"),
        ({"prompt": "a"}, "no format has the columns prompt"),
        ({"prompt": "a", "completion": float("nan")}, "must be a text, not nan"),
        ({"prompt": "a", "completion": "\ud800"}, r"holds \\ud800, half of a surrogate pair"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "unknown role"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "a", "weight": 0}]}, "weights of messages are not"),
        ({"prompt": ["a"], "completion": "b"}, "must have 'role'"),
        ({"text": {"a": 1}}, "column 'text' must be a text, not dict"),
        ({"prompt": "a", "completion": "b", "label": False}, "label is False, which marks a bad answer"),
        ({"prompt": "a", "completion": "b", "label": "False"}, "label is False, which marks a bad answer"),
        ({"prompt": "a", "completion": "b", "label": 0}, "label is 0, which marks a bad answer"),
        ({"messages": CHAT, "kto_tag": "false"}, "kto_tag is false, which marks a bad answer"),
        ({"prompt": "a", "completion": "b", "history": ["c"]}, "column 'history' must be a list of pairs"),
        ({"messages": CHAT, "tools": "lamp"}, "column 'tools': tools must be a list of JSON schemas"),
        ({"messages": CHAT, "images": ["a.png"]}, "column 'images': pictures, sounds and films are not handled"),
        ({"prompt": "a", "completion": "b", "rejected": "c"}, "column 'rejected': a row with a chosen and a rejected"),
        (
            {"messages": [CHAT[0], {**CHAT[1], "tool_calls": [{"id": 1}]}]},
            r"messages\[1\]: a call of a tool has no name",
        ),
        ({"messages": [CHAT[0], {**CHAT[1], "reasoning_content": "\ud800"}]}, r"messages\[1\]: holds \\ud800, half"),
        ({"messages": [{"speaker": "user", "text": "a"}]}, r"or 'from' and 'value'; it has 'speaker', 'text'"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "column 'history' must be a list of pairs"),
        ({"instruction": "a", "output": "b", "history": [["c", 1]]}, r"history\[0\]: must hold two texts"),
    ],
)
def test_a_row_that_is_no_example_is_named(values, complaint):
    with pytest.raises(DataError, match=f"a.jsonl:1: .*{complaint}|a.jsonl:1: {complaint}"):
        example(values)
