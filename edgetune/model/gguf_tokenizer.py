"""The tokenizer and chat template in a .gguf file, as what encodes rows asks of a transformers tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.model.gguf import Gguf


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
        self.all_special_ids = self._file.control_ids()
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
        self, turns: Sequence[Mapping[str, str]], *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation, by the file's template."""
        from transformers.utils.chat_template_utils import render_jinja_template

        assert not tokenize
        rendered: Any = render_jinja_template(
            conversations=[list(turns)],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_token or "",
            eos_token=self.eos_token or "",
        )
        while not isinstance(rendered, str):  # a pair with the answers' places, a list of conversations
            rendered = rendered[0]
        return rendered
