"""Rows to examples: formats recognised, and rows that cannot be one."""

from __future__ import annotations

import pytest

from edgetune.data.formats import detect, to_example
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


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"question": "a", "answer": "b"}, "no format has the columns question, answer; name yours"),
        ({"messages": []}, "must be a list of messages that is not empty"),
        ({"messages": "hi"}, "must be a list of messages"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "has no assistant message"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, r"messages\[0\]: unknown role 'robot'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: must have 'role' and 'content'"),
        ({"messages": [{"role": "assistant", "content": None}]}, "must be a text"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown role 'alien'"),
        ({"prompt": "a", "completion": None}, "column 'completion' is null"),
        ({"prompt": "a"}, "no format has the columns prompt"),
        ({"prompt": "a", "completion": float("nan")}, "must be a text, not nan"),
        ({"prompt": "a", "completion": "\ud800"}, r"holds \\ud800, half of a surrogate pair"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "unknown role"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "a", "weight": 0}]}, "weights of messages are not"),
        ({"prompt": ["a"], "completion": "b"}, "must have 'role'"),
        ({"text": {"a": 1}}, "column 'text' must be a text, not dict"),
    ],
)
def test_a_row_that_is_no_example_is_named(values, complaint):
    with pytest.raises(DataError, match=f"a.jsonl:1: .*{complaint}|a.jsonl:1: {complaint}"):
        example(values)
