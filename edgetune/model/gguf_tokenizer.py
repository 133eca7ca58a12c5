"""The tokenizer and chat template in a .gguf file, as what encodes rows asks of a transformers tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.model.gguf import Gguf
from edgetune.runtime.template import ChatTemplate


class GgufTokenizer:
    """llama.cpp's own tokenizer, so that a .gguf file reads text as it does on the device."""

    is_fast = False
    """It tells no places of tokens in the text: prompts and answers are encoded apart."""

    def __init__(self, path: Path) -> None:
        """Reads the vocabulary alone. Raises ModelError, MissingExtraError."""
        self._file = Gguf(path, is_vocabulary_only=True)
        self.chat_template = self._file.chat_template
        self.bos_token_id, self.eos_token_id = self._file.bos_id, self._file.eos_id
        self.bos_token, self.eos_token = (
            None if token_id is None else self._file.token_text(token_id)
            for token_id in (self.bos_token_id, self.eos_token_id)
        )
        self.special_tokens_map = {"bos_token": self.bos_token or "", "eos_token": self.eos_token or ""}
        self.added_tokens_decoder = {i: self._file.token_text(i) for i in self._file.control_ids()}
        self.end_ids = self._file.end_ids()
        self.context_length = self._file.context_length

    def __call__(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        verbose: bool = True,  # noqa: ARG002  as transformers has it
    ) -> dict[str, list[int]]:
        """{"input_ids": ...} of a text."""
        return {"input_ids": self._file.tokenize(text, add_special=add_special_tokens)}

    def apply_chat_template(
        self,
        turns: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of a conversation, by the file's template. Raises PromptError."""
        assert not tokenize
        template = ChatTemplate(self.chat_template or "", tuple(self.special_tokens_map.items()))
        return template.render(turns, tools=tools, add_generation_prompt=add_generation_prompt)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, special ones left out."""
        assert skip_special_tokens
        return self._file.detokenize(ids)
