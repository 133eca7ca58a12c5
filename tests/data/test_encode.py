"""Examples to token ids: what is learned, turn by turn, for templates of several kinds."""

from __future__ import annotations

import pytest

from edgetune.data.chat import DEFAULT_TEMPLATE, chat_notes, ensure_chat_template, render
from edgetune.data.encode import NOT_TRAINED, answer_text, encode
from edgetune.data.files import Row
from edgetune.data.formats import Example, Message, to_example
from edgetune.errors import DataError

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}(cut){% else %}{{ m.content }}{% endif %}"
    "<|end|>{% endfor %}"
)

THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ '(think)' if m.role == 'assistant' and loop.last }}{{ m.content }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chat(*contents):
    roles = ["user", "assistant"] * 3
    return Example(tuple(Message(r, c) for r, c in zip(roles, contents, strict=False)), None, "a:1")


def learned(row, tokenizer):
    runs, current = [], []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        if label != NOT_TRAINED:
            assert label == token
            current.append(token)
        elif current:
            runs, current = [*runs, tokenizer.decode(current)], []
    return [*runs, tokenizer.decode(current)] if current else runs


@pytest.mark.parametrize("template", [None, DEFAULT_TEMPLATE, CHATML])
def test_every_answer_with_its_end_token_is_learned_and_nothing_else(tokenizer, template):
    if template:
        tokenizer.chat_template = template
    row = encode(chat("one", "two", "three", "four"), tokenizer, max_seq_len=512, loss_on="completion")
    assert learned(row, tokenizer) == [f"two{tokenizer.eos_token}", f"four{tokenizer.eos_token}"]


@pytest.mark.parametrize("template", [None, CHATML])
def test_an_answer_that_opens_the_conversation_is_learned_too(tokenizer, template):
    if template:
        tokenizer.chat_template = template
    turns = (("assistant", "hello"), ("user", "turn on the lamp"), ("assistant", "ok"))
    example = Example(tuple(Message(*turn) for turn in turns), None, "a:1")
    row = encode(example, tokenizer, max_seq_len=512, loss_on="completion")
    assert learned(row, tokenizer) == [f"hello{tokenizer.eos_token}", f"ok{tokenizer.eos_token}"]


def test_the_prompt_is_the_one_that_generation_starts_from(tokenizer):
    example = chat("turn on the lamp", "ok")
    row = encode(example, tokenizer, max_seq_len=512, loss_on="completion")
    asked = render(tokenizer, example.messages[:1], add_generation_prompt=True)
    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    assert list(row.input_ids[: len(ids)]) == ids
    assert row.labels[len(ids)] != NOT_TRAINED
    assert all(label == NOT_TRAINED for label in row.labels[: len(ids)])


def test_loss_on_all_learns_every_token(tokenizer):
    row = encode(chat("one", "two"), tokenizer, max_seq_len=512, loss_on="all")
    assert list(row.labels) == list(row.input_ids)


def test_an_answer_that_also_stands_in_the_question_is_learned_once(tokenizer):
    row = encode(chat("say two two", "two"), tokenizer, max_seq_len=512, loss_on="completion")
    assert learned(row, tokenizer) == [f"two{tokenizer.eos_token}"]


def test_plain_text_is_learned_whole_and_ends(tokenizer):
    row = encode(Example((), "once upon", "a:1"), tokenizer, max_seq_len=512, loss_on="completion")
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert list(row.labels) == list(row.input_ids)


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_place(tokenizer):
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(DataError, match="a:1: the chat template writes message 2 differently once others follow"):
        encode(chat("one", "two", "three", "four"), tokenizer, max_seq_len=512, loss_on="completion")


def test_loss_on_all_needs_nothing_of_the_template(tokenizer):
    tokenizer.chat_template = FORGETFUL
    row = encode(chat("one", "two", "three", "four"), tokenizer, max_seq_len=512, loss_on="all")
    assert tokenizer.decode(row.input_ids) == "one<|end|>(cut)<|end|>three<|end|>four<|end|>"


def test_more_around_the_last_answer_than_around_earlier_ones_is_learned_with_it(tokenizer):
    tokenizer.chat_template = THINKING
    row = encode(chat("one", "two", "three", "four"), tokenizer, max_seq_len=512, loss_on="completion")
    assert learned(row, tokenizer) == ["two<|end|>", "(think)four<|end|>"]


OPEN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Nothing of it ends an answer."""


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_where_the_template_ends_no_answer_the_end_token_stands_after_the_last(tokenizer, loss_on):
    tokenizer.chat_template = OPEN
    row = encode(chat("one", "two", "three", "{four}"), tokenizer, max_seq_len=512, loss_on=loss_on)
    whole = "user: one\nassistant: two\nuser: three\nassistant: {four}<|end|>"
    assert tokenizer.decode(row.input_ids) == whole
    assert learned(row, tokenizer) == (["two", "{four}<|end|>"] if loss_on == "completion" else [whole])


def test_where_nothing_ends_an_answer_the_row_is_refused(tokenizer):
    tokenizer.chat_template, tokenizer.eos_token = OPEN, None
    with pytest.raises(DataError, match=r"a:1: nothing ends an answer: .*; set eos_token in tokenizer_config.json"):
        encode(chat("one", "two"), tokenizer, max_seq_len=512, loss_on="completion")


@pytest.mark.parametrize("after", ["<|system|>", "<|system|>\n", "\n<|system|>"])
def test_the_token_that_ends_a_turn_is_learned_whether_or_not_it_is_the_end_of_texts(tokenizer, after):
    tokenizer.chat_template = OPEN.replace("\n{% endfor", f"{after}{{% endfor")
    row = encode(chat("one", "two", "three", "four"), tokenizer, max_seq_len=512, loss_on="completion")
    end = after.rstrip()
    assert learned(row, tokenizer) == [f"two{end}", f"four{end}"]


TOOL_ROW = {
    "messages": [
        {"role": "user", "content": "lamp on"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "lamp", "arguments": '{"on": true}'}}],
        },
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "It is on."},
    ],
    "tools": '[{"type": "function", "function": {"name": "lamp", "parameters": {}}}]',
}


def test_calls_of_tools_are_learned_as_the_template_writes_them(tokenizer):
    tokenizer.chat_template = None
    ensure_chat_template(tokenizer)
    example = to_example(Row(TOOL_ROW, "a:1"), "messages")
    row = encode(example, tokenizer, max_seq_len=512, loss_on="completion")
    call = '[{"name": "lamp", "arguments": {"on": true}}]'
    assert learned(row, tokenizer) == [f"{call}<|end|>", "It is on.<|end|>"]
    text = tokenizer.decode(row.input_ids)
    assert '### tools\n[{"type": "function", "function": {"name": "lamp"' in text
    assert "### tool\nok<|end|>" in text
    called = Example(example.messages[:2], None, "a:1", tools_json=example.tools_json)
    assert answer_text(called, tokenizer) == call
    assert answer_text(example, tokenizer) == "It is on."


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, "a:1: tools: the chat template makes no use of this; leave them out"),
        ({"tools": None}, "a:1: message 2: tool_calls: the chat template makes no use of this; write the call into"),
    ],
)
def test_what_the_template_does_not_write_is_refused_with_the_place(tokenizer, changes, complaint):
    tokenizer.chat_template = CHATML
    example = to_example(Row({**TOOL_ROW, **changes}, "a:1"), "messages")
    with pytest.raises(DataError, match=complaint):
        encode(example, tokenizer, max_seq_len=512, loss_on="completion")


def test_reasoning_that_the_template_writes_is_learned_and_what_it_forgets_is_told(tokenizer):
    tokenizer.chat_template = CHATML.replace(
        "{{ m.content }}",
        "{% if loop.last and m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}",
    )
    turns = [*chat("one", "two").messages, *chat("three", "four").messages]
    turns[1], turns[3] = (Message("assistant", t.content, '{"reasoning_content": "so"}') for t in (turns[1], turns[3]))
    example = Example(tuple(turns), None, "a:1")
    row = encode(example, tokenizer, max_seq_len=512, loss_on="completion")
    assert learned(row, tokenizer) == ["two<|end|>", "(so)four<|end|>"]
    assert chat_notes(tokenizer, [example]) == (
        "the chat template leaves out the reasoning of answers before the last question",
    )
    assert chat_notes(tokenizer, [Example(tuple(turns[:2]), None, "a:1")]) == ()


def test_a_template_that_asks_otherwise_than_it_writes_is_refused(tokenizer):
    tokenizer.chat_template = CHATML.replace("<|assistant|>{% endif", "<|assistant|>(think){% endif")
    with pytest.raises(DataError, match="a:1: the chat template writes what stands before message 2 in another way"):
        encode(chat("one", "two"), tokenizer, max_seq_len=512, loss_on="completion")


def test_a_template_that_refuses_a_conversation_is_an_error_with_the_place(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="a:1: the chat template refuses these messages: roles must alternate"):
        encode(chat("one", "two"), tokenizer, max_seq_len=512, loss_on="completion")


def test_an_answer_that_melts_into_the_prompt_is_tokenised_apart_from_it(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token if messages[1] }}"
    row = encode(chat("turn o", "n the lamp"), tokenizer, max_seq_len=512, loss_on="completion")
    assert learned(row, tokenizer) == ["n the lamp<|end|>"]


def test_a_tokenizer_without_template_gets_the_default_and_one_with_keeps_its_own(tokenizer):
    own = tokenizer.chat_template
    assert not ensure_chat_template(tokenizer)
    assert tokenizer.chat_template == own
    tokenizer.chat_template = None
    assert ensure_chat_template(tokenizer)
    assert render(tokenizer, chat("one", "two").messages).endswith(f"### assistant\ntwo{tokenizer.eos_token}\n")
