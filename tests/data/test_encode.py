"""Examples to token ids: what is learned, turn by turn, for templates of several kinds."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from edgetune.data.chat import DEFAULT_TEMPLATE, ensure_chat_template, render
from edgetune.data.encode import NOT_TRAINED, encode
from edgetune.data.formats import Example, Message
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


@pytest.fixture
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


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
