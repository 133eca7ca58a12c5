"""Generate text from a decoder bundle by onnxruntime-genai: the loop on the device.

    decoder = Decoder("runs/quickstart/bundle")
    print(decoder.generate("turn on the lamp in the kitchen").text)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetune.runtime.bundle import Bundle
from edgetune.runtime.prompt import Message

Prompt = str | Sequence[Message] | Sequence[int]
"""A user's text, a conversation, or token ids taken as they are (`Decoder.prompter.text_ids` makes them)."""


@dataclass(frozen=True)
class Generation:
    """One answer and what it took."""

    text: str
    token_ids: tuple[int, ...]
    """The new tokens, end-of-turn token left out."""
    prompt_tokens: int
    stop_reason: Literal["end", "length"]
    """end: the model ended its turn; length: max_new_tokens or the context was reached."""
    prefill_s: float
    """From the prompt's ids to the first new token."""
    decode_s: float
    """From the first new token to the last."""

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed; the first token counts to the prefill."""
        ...


class Decoder:
    """A loaded decoder bundle."""

    def __init__(self, bundle: Bundle | Path | str, *, threads: int | None = None) -> None:
        """Load; `threads` defaults to the physical cores this process may use.

        Raises BundleError, MissingExtraError.
        """

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        on_text: Callable[[str], object] | None = None,
    ) -> Generation:
        """The answer to a prompt; `on_text` receives the text piece by piece while it is made.

        temperature 0 takes the likeliest token each time; above it samples, the same seed giving the same text.
        Raises PromptError: empty prompt, prompt as long as the context, a setting out of range.
        """
        ...

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer piece by piece; the iterator's return value (StopIteration.value) is the Generation."""
        ...
