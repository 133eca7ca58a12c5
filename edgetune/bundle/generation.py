"""A merged decoder -> a bundle: graph, tokenizer, settings, how messages become text and when an answer ends."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgetune.bundle.settings import write_settings
from edgetune.data.chat import chat_template, end_ids, special_tokens
from edgetune.export.architecture import check_architecture
from edgetune.export.decoder import build_decoder
from edgetune.hashes import hash_tree, hash_values
from edgetune.model.base import context_length, load_tokenizer
from edgetune.provenance import provenance
from edgetune.quantize.folder import QuantizedFolder
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import Bundle, ChatFormat, write_manifest
from edgetune.verify.generation import Prompt


def build_bundle(
    merged: Path, folder: Path, recipe: Recipe, *, is_chat: bool, quantized: QuantizedFolder | None = None
) -> tuple[Bundle, Any]:
    """Write a bundle, not verified yet, into an empty folder; the bundle and the tokenizer of training.

    `quantized`: the weights on the grid; without it each is rounded as it is written.
    """
    config = check_architecture(merged)
    tokenizer = load_tokenizer(merged)
    if is_chat and tokenizer.chat_template is None:
        from edgetune.data.chat import ensure_chat_template

        ensure_chat_template(tokenizer)
    table = recipe.export
    grid, length = grid_of(table), context_length(config, table)
    chat = chat_format(tokenizer, merged, is_chat=is_chat, system=recipe.data.system)
    options: dict[str, Any] = {"max_length": table.max_length, "eos_ids": chat.eos_ids}
    build_decoder(merged, folder, precision=table.precision, grid=grid, quantized=quantized, **options)
    tokenizer.save_pretrained(folder)
    write_settings(folder, chat=chat, context_length=length)
    bundle = Bundle(
        path=folder,
        name=recipe.name,
        precision=table.precision,
        grid=grid,
        chat=chat,
        context_length=length,
        provenance={
            "base": recipe.model.base,
            "merged_sha256": hash_tree(merged),
            "recipe_sha256": hash_values(recipe),
            "method": quantized.record.get("method") if quantized else None,
            "repair": quantized.record.get("repair") if quantized else None,
            **provenance(recipe.train.seed),
        },
    )
    return write_manifest(bundle), tokenizer


def chat_format(tokenizer: Any, merged: Path, *, is_chat: bool, system: str | None) -> ChatFormat:
    """How training rendered its prompts and ended its answers, from the tokenizer and generation_config.json.

    Raises ModelError if nothing says when to stop.
    """
    eos_ids = end_ids(tokenizer, merged, is_chat=is_chat)
    template = chat_template(tokenizer).source if is_chat else None
    for_tools = chat_template(tokenizer, has_tools=True).source if is_chat else None
    named = special_tokens(tokenizer, f"{template}{for_tools}") if is_chat else {}
    return ChatFormat(
        template=template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        bos_id=tokenizer.bos_token_id,
        eos_ids=eos_ids,
        system=system if is_chat else None,
        special_tokens={name: token for name, token in named.items() if name not in ("bos_token", "eos_token")},
        tool_template=for_tools if for_tools != template else None,
    )


def prompts_of(examples: Iterable[Any]) -> list[Prompt]:
    """Each example up to its last answer: the conversation, or the text where there is none."""
    prompts: list[Prompt] = []
    for example in examples:
        turns = example.turns
        if turns and turns[-1]["role"] == "assistant":
            turns = turns[:-1]
        if turns and example.tools:
            prompts.append({"messages": turns, "tools": example.tools})
        elif turns or example.text:
            prompts.append(turns or str(example.text))
    return prompts
