"""A conversation with a decoder: keeps the turns, forgets the oldest when the context is full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgetune.errors import PromptError
from edgetune.runtime.decoder import Decoder, Generation
from edgetune.runtime.prompt import Message


class Conversation:
    """Turns with one decoder. `messages` holds them; `dropped_turns` counts those forgotten for lack of room."""

    def __init__(self, decoder: Decoder, *, system: str | None = None) -> None:
        """`system` stands in for the bundle's own system message. Raises PromptError without a chat template."""
        if decoder.bundle.chat_format.template is None:
            raise PromptError(
                f"{decoder.bundle.path}: has no chat template, so it cannot chat", cure="use `edgetune generate`"
            )
        self._decoder = decoder
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[Message] = []
        self.dropped_turns = 0

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model sees: the system message, if given here, and the turns still remembered."""
        return (*self._system, *self._turns)

    def answer(
        self,
        text: str,
        *,
        max_new_tokens: int = 256,
        on_text: Callable[[str], object] | None = None,
        **sampling: Any,
    ) -> Generation:
        """The decoder's answer to the user's next message; both become part of the conversation.

        `sampling`: temperature, top_p, seed as for `Decoder.generate`. Turns are forgotten, the oldest first, until
        `max_new_tokens` or half of the context is free for the answer. Raises PromptError, the conversation unchanged,
        if the message alone does not fit.
        """
        turns = [*self._turns, {"role": "user", "content": text}]
        room = min(max_new_tokens, self._decoder.bundle.context_length // 2)
        dropped = 0
        while len(turns) > 1 and self._length(turns) + room > self._decoder.bundle.context_length:
            turns = turns[2:]
            dropped += 1
        result = self._decoder.generate(
            [*self._system, *turns], max_new_tokens=max_new_tokens, on_text=on_text, **sampling
        )
        self._turns = [*turns, {"role": "assistant", "content": result.text}]
        self.dropped_turns += dropped
        return result

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self._turns = []
        self.dropped_turns = 0

    def _length(self, turns: list[Message]) -> int:
        return len(self._decoder.prompter.chat_ids([*self._system, *turns]))
