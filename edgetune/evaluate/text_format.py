"""How a decoder reads and ends text: its tokenizer, end tokens and context, which encoding a row needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.data.chat import end_ids, ensure_chat_template
from edgetune.evaluate.target import Target
from edgetune.model.base import load_tokenizer
from edgetune.model.config import context_length, read_config
from edgetune.model.gguf_tokenizer import GgufTokenizer
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import open_bundle
from edgetune.runtime.session import load_tokenizer as load_bundle_tokenizer


@dataclass(frozen=True)
class TextFormat:
    """What encoding a row needs to know of a model."""

    tokenizer: Any
    eos_ids: tuple[int, ...]
    context_length: int


def format_of(target: Target, recipe: Recipe) -> TextFormat:
    """How a target reads text: as its base, its bundle or its .gguf file says. Raises ModelError, BundleError."""
    if target.model is not None:
        return format_of_folder(Path(target.model.base), recipe)
    return _of_gguf(target.path) if target.kind == "gguf" else _of_bundle(target.path)


def format_of_folder(folder: Path, recipe: Recipe) -> TextFormat:
    """How a recipe's decoder reads text: from the folder of its base, or of the merged model. Raises ModelError."""
    tokenizer = load_tokenizer(folder, trust_remote_code=recipe.model.trust_remote_code)
    ensure_chat_template(tokenizer)
    return TextFormat(
        tokenizer=tokenizer,
        eos_ids=end_ids(tokenizer, folder, is_chat=True),
        context_length=context_length(read_config(folder), recipe.export),
    )


def _of_bundle(path: Path) -> TextFormat:
    """A bundle's format, from its own files alone: its tokenizer.json, template and end tokens."""
    from transformers import PreTrainedTokenizerFast

    bundle = open_bundle(path)
    chat = bundle.chat_format
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=load_bundle_tokenizer(bundle),
        bos_token=chat.bos_token,
        eos_token=chat.eos_token,
        chat_template=chat.template,
    )
    return TextFormat(tokenizer, chat.eos_ids, bundle.context_length)


def _of_gguf(path: Path) -> TextFormat:
    """A .gguf file's format, from its own vocabulary, template and end tokens."""
    tokenizer = GgufTokenizer(path)
    ensure_chat_template(tokenizer)
    return TextFormat(tokenizer, tokenizer.end_ids, tokenizer.context_length)
