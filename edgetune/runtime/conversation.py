"""A conversation with a decoder: keeps the turns, forgets the oldest when the context is full."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgetune.errors import PromptError
from edgetune.runtime.decoder import Decoder, Generation
from edgetune.runtime.prompt import Message, Tools


class Conversation:
    """Turns with one decoder. `messages` holds them; `dropped_turns` counts those forgotten for lack of room."""

    def __init__(self, decoder: Decoder, *, system: str | None = None, tools: Tools | None = None) -> None:
        """`system` stands in for the bundle's own system message; `tools` are the JSON schemas of what may be called.

        Raises PromptError without a chat template.
        """
        if decoder.bundle.chat_format.template is None:
            raise PromptError(
                f"{decoder.bundle.path}: has no chat template, so it cannot chat", cure="use `edgetune generate`"
            )
        self._decoder = decoder
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._tools = tools
        self._turns: list[Message] = []
        self.dropped_turns = 0

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model sees: the system message, if given here, and the turns still remembered."""
        return (*self._system, *self._turns)

    def answer(
        self,
        said: str | Message | Sequence[Message],
        *,
        max_new_tokens: int = 256,
        on_text: Callable[[str], object] | None = None,
        **sampling: Any,
    ) -> Generation:
        """The decoder's answer to the user's next message; both become part of the conversation.

        `said`: the user's text, or a message of any role, or several: a tool's result, with the call that asked for it
        before it if that is to stand there as tool_calls. `sampling`: temperature, top_p, seed as for
        `Decoder.generate`. Turns are forgotten, the oldest first, until `max_new_tokens` or half of the context is free
        for the answer. Raises PromptError, the conversation unchanged, if the message alone does not fit.
        """
        turns = [*self._turns, *_messages(said)]
        room = min(max_new_tokens, self._decoder.bundle.context_length // 2)
        dropped = 0
        while self._length(turns) + room > self._decoder.bundle.context_length and (later := _without_first(turns)):
            turns = later
            dropped += 1
        result = self._decoder.generate(
            [*self._system, *turns],
            max_new_tokens=max_new_tokens,
            tools=self._tools,
            on_text=on_text,
            **sampling,
        )
        self._turns = [*turns, {"role": "assistant", "content": result.text}]
        self.dropped_turns += dropped
        return result

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self._turns = []
        self.dropped_turns = 0

    def _length(self, turns: list[Message]) -> int:
        return len(self._decoder.prompter.chat_ids([*self._system, *turns], tools=self._tools))


def _messages(said: str | Message | Sequence[Message]) -> list[Message]:
    if isinstance(said, str):
        return [{"role": "user", "content": said}]
    return [said] if isinstance(said, Mapping) else list(said)


def _without_first(turns: list[Message]) -> list[Message]:
    """The turns from the user's second message on: none is left without what it answers. Empty if there is no such."""
    later = next((n for n, turn in enumerate(turns) if n and turn.get("role") == "user"), len(turns))
    return turns[later:]
