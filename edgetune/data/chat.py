"""Conversations -> text, by the tokenizer's own chat template or a documented default; and what ends an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.data.formats import Example, Message
from edgetune.errors import DataError, ModelError, PromptError, shown
from edgetune.model.config import read_config
from edgetune.runtime.template import REASONING, ChatTemplate, call_texts, forgets_reasoning

DEFAULT_TEMPLATE = (
    "{{ bos_token }}{% if tools %}### tools\n{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}### {{ message['role'] }}\n{{ message['content'] }}{% if message['tool_calls'] %}"
    "{{ message['tool_calls'] | map(attribute='function') | list | tojson }}{% endif %}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}### assistant\n{% endif %}"
)
"""For tokenizers without a template: plain text markers that need no new tokens; every turn ends with eos_token. Tools
and calls of them are written as JSON."""

TOOL_TEMPLATE = "tool_use"
"""Of several chat templates, the one that transformers takes where there are tools."""
PLAIN, PLAIN_ROLES = ("role", "content"), ("user", "assistant")
"""A message with these keys and of these roles is the same to every chat template."""
ANSWER = "zxqj"
"""An answer that stands nowhere else."""


def ensure_chat_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the default one; whether it had none.

    Raises DataError if it has no eos_token either.
    """
    if tokenizer.chat_template:
        return False
    if not tokenizer.eos_token:
        raise DataError(
            "the tokenizer has neither a chat template nor an eos_token", cure="set one in tokenizer_config.json"
        )
    tokenizer.chat_template = (
        DEFAULT_TEMPLATE.replace("{{ bos_token }}", "") if not tokenizer.bos_token else DEFAULT_TEMPLATE
    )
    return True


def chat_template(tokenizer: Any, *, has_tools: bool = False) -> ChatTemplate:
    """The tokenizer's chat template as the device runs it; of several, that for tools where there are some.

    Raises DataError if there are several and none is called default.
    """
    source = tokenizer.chat_template
    if isinstance(source, Mapping):
        source = (has_tools and source.get(TOOL_TEMPLATE)) or source.get("default")
        if source is None:
            raise DataError("none of the tokenizer's chat templates is called default", cure="rename one of them")
    return ChatTemplate(str(source), tuple(sorted(special_tokens(tokenizer, str(source)).items())))


def special_tokens(tokenizer: Any, source: str) -> dict[str, str]:
    """The special tokens that a chat template calls by name -> their text."""
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return {name: token for name, token in named.items() if name in source}


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation; with add_generation_prompt it ends where the assistant's answer begins.

    Raises DataError if the template refuses the messages (two user turns in a row, say), or makes no use of what they
    hold: tools, calls of them, reasoning.
    """
    turns = [message.turn for message in messages]
    return render_turns(tokenizer, turns, tools=tools, add_generation_prompt=add_generation_prompt)


def render_turns(
    tokenizer: Any,
    turns: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = False,
) -> str:
    """As `render`, of messages as chat templates take them."""
    turns, more = [dict(turn) for turn in turns], {"tools": list(tools)} if tools else {}
    if tools or any(len(turn) > len(PLAIN) or turn["role"] not in PLAIN_ROLES for turn in turns):
        turns = _fitted(chat_template(tokenizer, has_tools=bool(tools)), turns, tools)
    try:
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt, **more)
        )
    except PromptError as error:  # of a .gguf file's template
        raise DataError(error.message, cure=error.cure) from None
    except Exception as error:  # jinja2 and templates raise what they like
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"the chat template refuses these messages: {reason}") from None


@dataclass(frozen=True)
class Closing:
    """What a chat template writes after an answer."""

    text: str
    """All of it, up to the end of a conversation that ends with the answer."""
    token: str | None
    """The added token in it that ends the turn: the first, with nothing but white space before it. None: none does."""
    token_id: int | None

    def end_of(self, whole: str, first: int, last: int) -> int:
        """Where what is learned of an answer ends, whose text is whole[first:last]: behind the token that ends it.

        What a template writes behind that token, a line break say, is not learned; without such a token, nothing of
        what it writes behind the answer.
        """
        if whole.endswith(self.text, first, last):
            return last - len(self.text) + (self.text.find(self.token) + len(self.token) if self.token else 0)
        at = whole.rfind(self.token, first, last) if self.token else -1
        stop = at + len(self.token or "")
        return stop if at >= 0 and not whole[stop:last].strip() else last


def closing(tokenizer: Any) -> Closing:
    """How the tokenizer's chat template ends an answer, by what it writes after one that is known.

    Any added token ends a turn: the one of a base's chat template need be neither its eos_token nor named as special.
    Raises DataError if the template writes no such conversation.
    """
    _, found, text = _known_answer(tokenizer).rpartition(ANSWER)
    if not found:
        raise DataError("the chat template does not write answers", cure="give one that does: chat_template.jinja")
    ends = _added_tokens(tokenizer)
    stripped = text.lstrip()
    first = max((token for token in ends.values() if token and stripped.startswith(token)), key=len, default=None)
    token_id = next((i for i, token in ends.items() if token == first), None)
    return Closing(text, first, token_id)


def call_end(tokenizer: Any) -> int | None:
    """The added token that ends a message of calls: the last that the chat template writes behind a known one.

    One that is written for each call of a message ends a call and not the message. None: no token ends it, or the
    template writes no calls.
    """
    written = call_texts(chat_template(tokenizer, has_tools=True))
    ends = _added_tokens(tokenizer)
    if written is None:
        return None
    found = {i: written.after.rfind(token) + len(token) for i, token in ends.items() if token in written.after}
    last = max(found, key=lambda i: (found[i], len(ends[i])), default=None)
    if last is None or written.two.count(ends[last]) > written.one.count(ends[last]):
        return None
    rest = written.after[found[last] :].strip()  # of another token perhaps the first characters
    return last if any(token.startswith(rest) for token in ends.values()) else None


def _added_tokens(tokenizer: Any) -> dict[int, str]:
    return {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items() if str(token)}


def _known_answer(tokenizer: Any) -> str:
    """A conversation whose answer is ANSWER, led by a system message only where the template asks for one."""
    turns = (Message("system", "s"), Message("user", "u"), Message("assistant", ANSWER))
    try:
        return render(tokenizer, turns[1:])
    except DataError:
        return render(tokenizer, turns)


def _fitted(
    template: ChatTemplate, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The turns in the template's own form. Raises DataError if it makes no use of something in them."""
    try:
        template.refuse_unwritten(turns, tools)
        template.refuse_dropped_content(turns)
        return template.fitted(turns)
    except PromptError as error:
        raise DataError(error.message, cure=error.cure) from None


def end_ids(tokenizer: Any, folder: Path, *, is_chat: bool) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's, generation_config.json's, and what the template puts after one, or
    after calls.

    Raises ModelError if there are none.
    """
    found = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        stated = read_config(folder, "generation_config.json").get("eos_token_id")
        found |= set(stated) if isinstance(stated, list) else {stated}
    if is_chat and tokenizer.chat_template:
        found |= {closing(tokenizer).token_id, call_end(tokenizer)}
    ends = tuple(sorted(token for token in found if token is not None))
    if not ends:
        raise ModelError(f"{folder}: no end-of-text token is known", cure="set eos_token in tokenizer_config.json")
    return ends


def appended_end(tokenizer: Any, end: Closing) -> str:
    """The eos_token, which is learned after a row's last answer where the chat template puts nothing there; else "".

    Raises DataError where there is no eos_token either.
    """
    if end.token is not None:
        return ""
    if not tokenizer.eos_token:
        raise DataError(
            "nothing ends an answer: the chat template writes no token of its own after one, and the tokenizer has no "
            "eos_token",
            cure="set eos_token in tokenizer_config.json",
        )
    return str(tokenizer.eos_token)


def chat_notes(tokenizer: Any, examples: Iterable[Example]) -> tuple[str, ...]:
    """What the chat template does with these rows that a user may not expect, a line each."""
    end = appended_end(tokenizer, closing(tokenizer))
    lines = (
        (end, f"the chat template writes nothing that ends an answer; {end} is learned after each row's last one"),
        (
            any(_forgets(tokenizer, example) for example in examples),
            "the chat template leaves out the reasoning of answers before the last question",
        ),
    )
    return tuple(line for applies, line in lines if applies)


def _forgets(tokenizer: Any, example: Example) -> bool:
    """Whether a conversation has reasoning that its chat template leaves out because a question follows."""
    keys: set[str] = set()
    seen: set[str] = set()
    for turn in example.turns:
        if turn["role"] == "user":
            keys |= seen
        seen |= {key for key in REASONING if turn.get(key)}
    template = chat_template(tokenizer, has_tools=bool(example.tools_json)) if keys else None
    return template is not None and any(forgets_reasoning(template, key) for key in keys)


def check_device_text(tokenizer: Any, example: Example) -> None:
    """Raises DataError if the device would render a conversation otherwise than the tokenizer's own code does."""
    asked, tools = example.messages[:-1] or example.messages, example.tools
    wanted = render(tokenizer, asked, tools=tools, add_generation_prompt=True)
    template = chat_template(tokenizer, has_tools=bool(tools))
    turns = template.fitted([message.turn for message in asked])
    found = template.render(turns, tools=tools, add_generation_prompt=True)
    if found != wanted:
        at = next(at for at in range(len(wanted) + 1) if found[: at + 1] != wanted[: at + 1])
        raise DataError(
            f"the tokenizer's own code writes {shown(wanted[at : at + 20])} where its chat template, which is all that "
            f"the device has, writes {shown(found[at : at + 20])}",
            cure="use a tokenizer whose prompts are its chat template's",
        )
