"""What edgetune.json says about a decoder: its grid, how messages become text, when an answer ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.errors import ModelError
from edgetune.recipe import ExportTable
from edgetune.run_dir import read_json
from edgetune.runtime.bundle import ChatFormat, Grid


def grid_of(table: ExportTable) -> Grid | None:
    """The grid that an [export] table asks for; None for fp16 and fp32."""
    bits = {"int4": 4, "int8": 8}.get(table.precision)
    if bits is None:
        return None
    return Grid(
        bits=bits,
        block_size=table.block_size,
        symmetric=table.symmetric,
        accuracy_level=table.accuracy_level,
        head_bits=max(bits, table.head_bits),
    )


def context_length(config: Mapping[str, Any], table: ExportTable) -> int:
    """Longest text in tokens: the base's, or what the recipe cuts it to."""
    longest = int(config.get("max_position_embeddings", 2048))
    return min(longest, table.max_length or longest)


def chat_format(tokenizer: Any, merged: Path, *, is_chat: bool, system: str | None) -> ChatFormat:
    """How training rendered its prompts and ended its answers, from the tokenizer and generation_config.json.

    Raises ModelError if nothing says when to stop.
    """
    eos_ids = end_ids(tokenizer, merged, is_chat=is_chat)
    if not eos_ids:
        raise ModelError(f"{merged}: no end-of-text token is known", cure="set eos_token in tokenizer_config.json")
    return ChatFormat(
        template=tokenizer.chat_template if is_chat else None,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        bos_id=tokenizer.bos_token_id,
        eos_ids=eos_ids,
        system=system if is_chat else None,
    )


def end_ids(tokenizer: Any, merged: Path, *, is_chat: bool) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's, generation_config.json's, and what the template puts after one."""
    found = {tokenizer.eos_token_id}
    if (merged / "generation_config.json").is_file():
        stated = read_json(merged / "generation_config.json").get("eos_token_id")
        found |= set(stated) if isinstance(stated, list) else {stated}
    if is_chat and tokenizer.chat_template:
        found.add(_turn_end(tokenizer))
    return tuple(sorted(token for token in found if token is not None))


def _turn_end(tokenizer: Any) -> int | None:
    """The special token right after an assistant's message, if the template puts one there."""
    mark = "zxqj"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text.rpartition(mark)[2], add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.all_special_ids else None
