"""A loaded target as lm-evaluation-harness asks for one: text to tokens, probabilities of tokens, greedy answers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgetune.evaluate.rows import EvalRow, Limits

IsDone = Callable[[str], bool]
"""Whether an answer's text so far is enough."""


class Reader(Protocol):
    """What is asked."""

    context_length: int
    prefix_id: int
    """Stands before a text that has nothing before it: the start token, or the end token where there is none."""
    prefix_text: str
    """The same as a text may have it."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids, with what the tokenizer itself puts around a text, or without."""
        ...

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """The text of a conversation."""
        ...

    def logits(self, ids: Sequence[int], start: int) -> np.ndarray:
        """Logits float32 (T - start, V) by which tokens ids[start:] are predicted; start is at least 1.

        The last token is predicted alone, so that T is at most context_length + 1.
        """
        ...

    def answer(self, ids: Sequence[int], *, max_new_tokens: int, is_done: IsDone) -> str:
        """The greedy answer's text, until it ends or is done."""
        ...


def load(request: Mapping[str, Any]) -> Reader:
    """The reader of a request (see child.py)."""
    if request["kind"] == "bundle":
        return BundleReader(Path(request["path"]))
    if request["kind"] == "gguf":
        return GgufReader(Path(request["path"]))
    return TorchReader(importlib.import_module("edgetune.evaluate.torch_model").load(request))


def _row(ids: Sequence[int], start: int) -> EvalRow:
    """Ids as a row of which the tokens from `start` on count, the last of them predicted and not read."""
    labels = [-100] * start + list(ids[start:])
    return EvalRow((), None, (), tuple(ids[:-1]), tuple(labels), "")


class BundleReader:
    """A decoder bundle, by the runtime that goes to the device."""

    def __init__(self, path: Path) -> None:
        """Raises BundleError."""
        self._target = importlib.import_module("edgetune.evaluate.bundle").BundleAnswerer(path)
        self._decoder = self._target.decoder
        chat = self._target.bundle.chat_format
        self.context_length: int = self._target.bundle.context_length
        self._tokenizer = self._decoder.prompter.tokenizer
        end = self._tokenizer.token_to_id(chat.eos_token) if chat.eos_token else None
        known = (chat.bos_id, end, *sorted(chat.eos_ids), 0)
        self.prefix_id = next(token_id for token_id in known if token_id is not None)
        self.prefix_text = str(self._tokenizer.decode([self.prefix_id], skip_special_tokens=False))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """By the bundle's own tokenizer."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """By the bundle's own template."""
        return str(self._decoder.prompter.render(messages, add_generation_prompt=add_generation_prompt))

    def logits(self, ids: Sequence[int], start: int) -> np.ndarray:
        """By plain onnxruntime."""
        return np.asarray(next(self._target.trained_logits([_row(ids, start)])))

    def answer(self, ids: Sequence[int], *, max_new_tokens: int, is_done: IsDone) -> str:
        """By onnxruntime-genai."""
        text = ""
        for piece in self._decoder.stream(ids, max_new_tokens=max_new_tokens):
            text += piece
            if is_done(text):
                break
        return text


class GgufReader:
    """A .gguf file, by llama.cpp."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError, MissingExtraError."""
        from edgetune.model.gguf_tokenizer import GgufTokenizer

        self._target = importlib.import_module("edgetune.evaluate.gguf").GgufAnswerer(path)
        self._tokenizer = GgufTokenizer(path)
        self.context_length = self._tokenizer.context_length
        known = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, *self._tokenizer.end_ids)
        self.prefix_id = next(token_id for token_id in known if token_id is not None)
        self.prefix_text = self._target.file.token_text(self.prefix_id)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """By llama.cpp's tokenizer."""
        return self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """By the file's template."""
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)

    def logits(self, ids: Sequence[int], start: int) -> np.ndarray:
        """By llama.cpp."""
        return np.asarray(next(self._target.trained_logits([_row(ids, start)])))

    def answer(self, ids: Sequence[int], *, max_new_tokens: int, is_done: IsDone) -> str:
        """By llama.cpp."""
        return _until_done(
            self._target.file.stream(ids, new_tokens=min(max_new_tokens, self.context_length - len(ids))),
            self._tokenizer.end_ids,
            self._target.file.detokenize,
            is_done,
        )


class TorchReader:
    """A torch model with its tokenizer."""

    def __init__(self, target: Any) -> None:
        """`target`: a TorchAnswerer."""
        from edgetune.data.chat import end_ids, ensure_chat_template
        from edgetune.model.config import context_length
        from edgetune.recipe import ExportTable

        self._target, self._tokenizer = target, target.tokenizer
        ensure_chat_template(self._tokenizer)
        self.context_length = context_length(target.model.config.get_text_config().to_dict(), ExportTable())
        self._ends = end_ids(self._tokenizer, Path(self._tokenizer.name_or_path), is_chat=True)
        known = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, *sorted(self._ends))
        self.prefix_id = next(token_id for token_id in known if token_id is not None)
        self.prefix_text = str(self._tokenizer.decode([self.prefix_id]))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """By transformers' tokenizer."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return ids

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """By the tokenizer's template."""
        turns = [dict(message) for message in messages]
        return str(
            self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
        )

    def logits(self, ids: Sequence[int], start: int) -> np.ndarray:
        """By a forward pass."""
        return np.asarray(next(self._target.trained_logits([_row(ids, start)])))

    def answer(self, ids: Sequence[int], *, max_new_tokens: int, is_done: IsDone) -> str:
        """By the greedy decoding that scores rows."""
        limits = Limits(max_new_tokens, self.context_length, tuple(self._ends))
        greedy = importlib.import_module("edgetune.evaluate.torch_model").greedy
        found = greedy(self._target.model, [ids], limits=limits, is_done=lambda new: is_done(self._decode(new)))
        return self._decode(found[0])

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _until_done(
    tokens: Iterator[int], ends: Sequence[int], decode: Callable[[Sequence[int]], str], is_done: IsDone
) -> str:
    """The text of tokens up to an end token, or until it is done."""
    ids: list[int] = []
    text = ""
    for token_id in tokens:
        if token_id in ends:
            break
        ids.append(token_id)
        text = decode(ids)
        if is_done(text):
            break
    return text
