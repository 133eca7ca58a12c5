"""A model that only answers: what it takes beside its tokens, what each token takes, and the device that has room.

In the flow: [model] and [budget] -> a place for the model -> as many rows at once as fit (evaluate/torch_model.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from edgetune.model.base import base_folder, empty_model
from edgetune.model.config import cache_width
from edgetune.model.device import compute_dtype, device
from edgetune.model.memory import (
    FRAGMENTATION,
    LIBRARY_BYTES,
    base_parts,
    give_back_memory,
    is_out_of_memory,
    room_bytes,
)
from edgetune.process_memory import resident_bytes
from edgetune.recipe import BudgetTable, ModelTable

LEAST_TOKENS = 2048
"""Tokens that must have room beside a model's weights; else the model goes elsewhere."""
Made = TypeVar("Made")


@dataclass(frozen=True)
class Place:
    """Where a model is put, and what is left there for the tokens that it reads and writes."""

    device: torch.device
    table: ModelTable
    """How it is held there."""
    room_bytes: int
    note: str = ""
    """A line for its owner, where it is not the device that a model would be put on."""


def find_place(
    table: ModelTable, budget: BudgetTable, *, beside_bytes: int = 0, others_bytes: int = 0, name: str = "the model"
) -> Place:
    """The GPU in use if the model fits there by [budget] and by what is free, else the CPU.

    `beside_bytes`: an adapter's, on the same device; `others_bytes`: resident memory of other processes of the run. On
    the CPU the model stays in the type of the GPU where its own would not fit. Raises ModelError.
    """
    model, first, cpu = empty_model(base_folder(table)), device(), torch.device("cpu")

    def left(on: torch.device, held: ModelTable) -> int:
        item = compute_dtype(held.compute_dtype, on).itemsize
        needed = sum(base_parts(model, held, item).values()) + beside_bytes
        return free_bytes(budget, on, others_bytes) - needed

    least = LEAST_TOKENS * token_bytes(model.config, compute_dtype(table.compute_dtype, first).itemsize)
    there = left(first, table)
    if first.type == "cpu" or there >= least:
        return Place(first, table, there)
    lean = dataclasses.replace(table, compute_dtype="bfloat16") if table.compute_dtype == "auto" else table
    held = table if left(cpu, table) >= 0 else lean
    lacking = (least - there) / 1024**2
    note = f"{name} is put on the CPU, which is slower: the GPU lacks {lacking:,.0f} MiB"
    return Place(cpu, held, left(cpu, held), note)


def free_bytes(budget: BudgetTable, on: torch.device, others_bytes: int = 0) -> int:
    """What this process may still take on a device: of [budget] or of what is there, whichever is less."""
    if on.type == "cpu":
        return room_bytes(dataclasses.replace(budget, gpu_memory=None), "cpu") - resident_bytes() - others_bytes
    own = LIBRARY_BYTES["cuda"] + torch.cuda.memory_reserved(on)
    there = torch.cuda.mem_get_info(on)[0] * (1 - FRAGMENTATION)
    return min(room_bytes(budget, "cuda") - own, round(there))


def token_bytes(config: Any, item: int) -> int:
    """Memory of a token that a decoder has read or written: keys and values in all layers, those of one of them twice
    while they grow, and what is there while it passes a layer; numbers of `item` bytes. Of an encoder the last alone.
    """
    text = config.get_text_config()
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    mlp = max(wide) if isinstance(wide, list | tuple) else wide
    kept = 2 * cache_width(text) * (text.num_hidden_layers + 1)
    return item * (kept + 4 * text.hidden_size + 3 * mlp)


def in_memory(
    batches: Sequence[Sequence[int]], work: Callable[[Sequence[int]], Made]
) -> Iterator[tuple[Sequence[int], Made]]:
    """Each batch of rows, the longest rows first, and what `work` makes of it.

    Where memory runs out the batch and all that follow are cut to half as many rows. Raises what `work` raises, of lack
    of memory where a single row is too much.
    """
    waiting = [*batches]
    while waiting:
        batch = waiting[0]
        try:
            made = [work(batch)]
        except (RuntimeError, MemoryError) as error:  # torch's own is a RuntimeError
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            made = []
        if not made:  # outside the except: the trace holds the tensors that were too much
            give_back_memory()
            rows, half = [row for rest in waiting for row in rest], len(batch) // 2
            waiting = [rows[start : start + half] for start in range(0, len(rows), half)]
            continue
        del waiting[0]
        yield batch, made[0]
