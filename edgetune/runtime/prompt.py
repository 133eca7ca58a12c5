"""Text to token ids and back, torch-free: the bundle's chat template, its tokenizer, and text while it is generated.

Export and evaluation use the same functions, so a prompt on the device is the prompt that was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnxruntime
import tokenizers

from edgetune.runtime.bundle import Bundle

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""


class Prompter:
    """Renders and encodes prompts as the bundle's training did."""

    def __init__(self, bundle: Bundle) -> None:
        """Reads tokenizer.json. Raises BundleError if it is damaged, MissingExtraError without onnxruntime-genai."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation by the bundle's chat template, with its default system message.

        Raises PromptError if there is no template, no message, or the template refuses the messages.
        """
        ...

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the answer starts."""
        ...

    def text_ids(self, text: str) -> list[int]:
        """Token ids of text taken as it is: bos where training put it, no template. Raises PromptError if it is empty."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens left out."""
        ...


class TextStream:
    """Text while its tokens arrive: a piece is given out only when its characters are whole."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None: ...

    def push(self, token_id: int) -> str:
        """The text that became whole with this token; "" while a character is incomplete."""
        ...

    def flush(self) -> str:
        """What is left at the end, incomplete bytes as U+FFFD."""
        ...
