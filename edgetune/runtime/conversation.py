"""A conversation with a decoder: keeps the turns, forgets the oldest when the context is full."""

from __future__ import annotations

from collections.abc import Callable

from edgetune.runtime.decoder import Decoder, Generation


class Conversation:
    """Turns with one decoder. `messages` holds them; `dropped_turns` counts those forgotten for lack of room."""

    def __init__(self, decoder: Decoder, *, system: str | None = None) -> None: ...

    def answer(self, text: str, *, on_text: Callable[[str], object] | None = None) -> Generation:
        """The decoder's answer to the user's next message; both become part of the conversation.

        Raises PromptError, the conversation unchanged, if the message alone does not fit the context.
        """
        ...

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
