"""Conversations: what is remembered, and what is forgotten when the context is full."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgetune.errors import PromptError
from edgetune.runtime.bundle import open_bundle
from edgetune.runtime.conversation import Conversation
from edgetune.runtime.decoder import Decoder


@pytest.fixture(scope="module")
def decoder(tiny_bundle: Path) -> Decoder:
    """A context of 100 tokens."""
    return Decoder(dataclasses.replace(open_bundle(tiny_bundle), context_length=100))


def test_each_answer_sees_the_turns_before(decoder: Decoder) -> None:
    conversation = Conversation(decoder, system="Be brief.")
    first = conversation.answer("turn on", max_new_tokens=5)
    conversation.answer("turn off", max_new_tokens=5)
    assert [message["role"] for message in conversation.messages] == ["system", *["user", "assistant"] * 2]
    assert conversation.messages[2]["content"] == first.text
    assert first == dataclasses.replace(
        decoder.generate(list(conversation.messages[:2]), max_new_tokens=5),
        prefill_s=first.prefill_s,
        decode_s=first.decode_s,
    )


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(decoder: Decoder) -> None:
    conversation = Conversation(decoder, system="Be brief.")
    for number in range(20):
        conversation.answer(f"turn on lamp {number}", max_new_tokens=10)
    assert conversation.dropped_turns > 0
    assert conversation.messages[0]["content"] == "Be brief."
    assert conversation.messages[1]["role"] == "user"
    assert conversation.messages[-2]["content"] == "turn on lamp 19"
    assert len(conversation.messages) == 1 + 2 * (20 - conversation.dropped_turns)


def test_a_message_that_does_not_fit_leaves_the_conversation_as_it_was(decoder: Decoder) -> None:
    conversation = Conversation(decoder)
    conversation.answer("turn on", max_new_tokens=5)
    before = conversation.messages
    with pytest.raises(PromptError, match="the context of tiny holds 100"):
        conversation.answer("x" * 500)
    assert conversation.messages == before
    assert conversation.dropped_turns == 0


def test_reset_forgets_all_but_the_system_message(decoder: Decoder) -> None:
    conversation = Conversation(decoder, system="Be brief.")
    conversation.answer("turn on", max_new_tokens=5)
    conversation.reset()
    assert conversation.messages == ({"role": "system", "content": "Be brief."},)


def test_a_bundle_without_chat_template_cannot_chat(decoder: Decoder) -> None:
    bundle = dataclasses.replace(decoder.bundle, chat=dataclasses.replace(decoder.bundle.chat, template=None))
    with pytest.raises(PromptError, match="cannot chat; use `edgetune generate`"):
        Conversation(Decoder(bundle))


TOOL = {"type": "function", "function": {"name": "lamp", "parameters": {"type": "object", "properties": {}}}}
TOOLS_WRITTEN = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def with_tools(tiny_bundle: Path) -> Decoder:
    bundle = open_bundle(tiny_bundle)
    chat = dataclasses.replace(bundle.chat_format, template=TOOLS_WRITTEN)
    return Decoder(dataclasses.replace(bundle, chat=chat))


def test_tools_are_in_every_prompt_and_their_results_are_answered(with_tools: Decoder) -> None:
    conversation = Conversation(with_tools, tools=[TOOL])
    conversation.answer("turn on", max_new_tokens=4)
    result = conversation.answer({"role": "tool", "content": "ok"}, max_new_tokens=4)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    asked = with_tools.generate(list(conversation.messages[:3]), tools=[TOOL], max_new_tokens=4)
    assert (result.text, result.prompt_tokens) == (asked.text, asked.prompt_tokens)
    without = with_tools.generate(list(conversation.messages[:3]), max_new_tokens=4)
    assert without.prompt_tokens < asked.prompt_tokens


def test_no_result_is_left_without_the_question_that_it_belongs_to(with_tools: Decoder) -> None:
    short = Decoder(dataclasses.replace(with_tools.bundle, context_length=100))
    conversation = Conversation(short)
    for number in range(12):
        conversation.answer(f"turn on lamp {number}", max_new_tokens=5)
        conversation.answer({"role": "tool", "content": "ok"}, max_new_tokens=5)
    assert conversation.dropped_turns > 0
    assert conversation.messages[0]["role"] == "user"


def test_tools_beside_a_prompt_that_nothing_renders_are_refused(with_tools: Decoder) -> None:
    with pytest.raises(PromptError, match="tools beside a prompt that is no conversation; give the prompt as messages"):
        with_tools.generate([5, 6, 7], tools=[TOOL])
