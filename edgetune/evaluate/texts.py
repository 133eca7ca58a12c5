"""How a model reads and ends text: its tokenizer, end tokens and context; from these the rows to evaluate on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.data.chat import end_ids, ensure_chat_template
from edgetune.data.read import Split
from edgetune.evaluate.evaluate import Target
from edgetune.evaluate.label_rows import LabelSet, make_label_set, write_label_set
from edgetune.evaluate.rows import EvalSet, make_eval_set, write_eval_set
from edgetune.model.base import context_length, load_tokenizer, read_config
from edgetune.model.classifier import read_spec
from edgetune.model.gguf_tokenizer import GgufTokenizer
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import open_bundle
from edgetune.runtime.session import load_tokenizer as load_bundle_tokenizer

EVAL_SET_FILE = "rows.json"


@dataclass(frozen=True)
class TextFormat:
    """What encoding a row needs to know of a model."""

    tokenizer: Any
    eos_ids: tuple[int, ...]
    context_length: int


def prepare_eval_set(recipe: Recipe, target: Target, out: Path, *, split: Split = "test") -> EvalSet | LabelSet:
    """The recipe's rows as a target reads them, written to out/rows.json; `split` of a decoder's.

    Raises DataError, ModelError, BundleError.
    """
    if target.task == "classification":
        label_set = make_label_set(recipe, _labels(target))
        write_label_set(out / EVAL_SET_FILE, label_set)
        return label_set
    if target.model is not None:
        texts = text_format(recipe, Path(target.model.base))
    else:
        texts = _of_gguf(target.path) if target.kind == "gguf" else _of_bundle(target.path)
    eval_set = make_eval_set(
        recipe, texts.tokenizer, eos_ids=texts.eos_ids, context_length=texts.context_length, split=split
    )
    write_eval_set(out / EVAL_SET_FILE, eval_set)
    return eval_set


def _labels(target: Target) -> tuple[str, ...]:
    """The labels of a classifier in the order of its logits."""
    if target.model is None:
        return open_bundle(target.path).classifier_format.labels
    return read_spec(target.path).labels


def text_format(recipe: Recipe, folder: Path) -> TextFormat:
    """How a recipe's decoder reads text: from the folder of its base, or of the merged model."""
    tokenizer = load_tokenizer(folder, trust_remote_code=recipe.model.trust_remote_code)
    ensure_chat_template(tokenizer)
    return TextFormat(
        tokenizer=tokenizer,
        eos_ids=end_ids(tokenizer, folder, is_chat=True),
        context_length=context_length(read_config(folder), recipe.export),
    )


def _of_bundle(path: Path) -> TextFormat:
    """From the bundle's own files alone: its tokenizer.json, template and end tokens."""
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
    """From the file's own vocabulary, template and end tokens."""
    tokenizer = GgufTokenizer(path)
    ensure_chat_template(tokenizer)
    return TextFormat(tokenizer, tokenizer.end_ids, tokenizer.context_length)
