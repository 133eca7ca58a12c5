"""Text to token ids and back, torch-free: the bundle's chat template, its tokenizer, and text while it is generated.

Export and evaluation use the same functions, so a prompt on the device is the prompt that was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from edgetune.errors import PromptError
from edgetune.runtime.bundle import Bundle
from edgetune.runtime.messages import read_message, read_tools
from edgetune.runtime.session import check_text, load_tokenizer, tokenizing

Message = Mapping[str, Any]
"""{"role": "system" | "developer" | "user" | "assistant" | "tool", "content": text}, and tool_calls, reasoning_content,
... as OpenAI's chat has them; `read_message` says what else is understood."""
Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of what the model may call, as transformers' apply_chat_template takes them."""

REPLACEMENT = "\ufffd"  # what tokenizers writes for bytes that are no character (yet)


class Prompter:
    """Renders and encodes prompts as the bundle's training did."""

    def __init__(self, bundle: Bundle) -> None:
        """Reads tokenizer.json. Raises BundleError if it is damaged, or if the bundle writes no text."""
        self.bundle = bundle
        self._chat = bundle.chat_format
        self.tokenizer = load_tokenizer(bundle)

    def render(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation by the bundle's chat template, with its default system message.

        Raises PromptError if there is no template, no message, or the template refuses the messages or makes no use of
        what they hold (tools, say).
        """
        schemas = read_tools(tools)
        source = (self._chat.tool_template if schemas else None) or self._chat.template
        if source is None:
            raise PromptError(f"{self.bundle.path}: has no chat template", cure="give it plain text: --raw")
        from edgetune.runtime.template import ChatTemplate  # here, because plain text does without Jinja

        checked = self._checked(messages)
        check_text(json.dumps(schemas, ensure_ascii=False), what="list of tools")
        template = ChatTemplate(source, self._names())
        try:
            template.refuse_unwritten(checked, schemas)
            return template.render(template.fitted(checked), tools=schemas, add_generation_prompt=add_generation_prompt)
        except PromptError as error:
            raise PromptError(f"{self.bundle.path}: {error.message}", cure=error.cure) from None

    def chat_ids(self, messages: Sequence[Message], *, tools: Tools | None = None) -> list[int]:
        """Token ids of a conversation up to where the answer starts. Raises PromptError."""
        return self._encode(self.render(messages, tools=tools))

    def text_ids(self, text: str) -> list[int]:
        """Token ids of text taken as it is: bos where training put it, no template. Raises PromptError if empty."""
        check_text(text)
        if not text:
            raise PromptError("the prompt is empty")
        bos_id = self._chat.bos_id
        return ([] if bos_id is None else [bos_id]) + self._encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _encode(self, text: str) -> list[int]:
        with tokenizing(self.bundle):
            return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _checked(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as templates read them, led by the default system message. Raises PromptError."""
        if not messages:
            raise PromptError("the conversation is empty")
        checked = [_read(message, number) for number, message in enumerate(messages, start=1)]
        if checked[-1]["role"] == "user" and not checked[-1]["content"].strip():
            raise PromptError("the prompt is empty")
        if self._chat.system is not None and checked[0]["role"] not in ("system", "developer"):
            checked.insert(0, {"role": "system", "content": self._chat.system})
        return checked

    def _names(self) -> tuple[tuple[str, str], ...]:
        """What the template may call by name, so that edgetune.json alone says what that is."""
        chat = self._chat
        names = {"bos_token": chat.bos_token, "eos_token": chat.eos_token, **chat.special_tokens}
        return tuple(sorted((name, token) for name, token in names.items() if token is not None))


def _read(message: Message, number: int) -> dict[str, Any]:
    """One message as templates read it. Raises PromptError."""
    try:
        found = read_message(message)
        check_text(json.dumps(found, ensure_ascii=False))
    except PromptError as error:
        raise PromptError(f"message {number}: {error.message}", cure=error.cure) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"message {number}: is no JSON: {error}") from None
    return found


class TextStream:
    """Text while its tokens arrive: a piece is given out only when its characters are whole."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # decoding starts here: one piece back, since a piece's text can depend on the one before
        self._done = 0  # ids up to here were given out

    def push(self, token_id: int) -> str:
        """The text that became whole with this token; "" while a character is incomplete."""
        self._ids.append(token_id)
        return self._take(is_last=False)

    def flush(self) -> str:
        """What is left at the end, incomplete bytes as U+FFFD."""
        return self._take(is_last=True)

    def _take(self, *, is_last: bool) -> str:
        before = self._decode(self._ids[self._start : self._done])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(before) or (text.endswith(REPLACEMENT) and not is_last):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
