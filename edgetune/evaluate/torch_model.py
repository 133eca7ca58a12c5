"""A torch model as an Answerer: batched greedy generation with a KV cache, and losses of whole rows.

transformers' `generate` gives the same answers, but computes rows on that have ended until the last one has: slower.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetune.data.encode import NOT_TRAINED
from edgetune.evaluate.rows import EvalRow, Limits
from edgetune.evaluate.torch_target import load_model
from edgetune.lora import adapter
from edgetune.model import base
from edgetune.model.device import autocast, find_base, held_dtype
from edgetune.model.inference import Place, in_memory, token_bytes
from edgetune.model.nf4 import MOST_UNPACKED_BYTES, hold_unpacked
from edgetune.runtime.batches import by_length, padded
from edgetune.train.loss import chunks, has_known_head, head_logits

MOST_ROWS = 64
"""Rows that are answered at once; fewer where memory does not allow as many."""


def load(request: Mapping[str, Any]) -> TorchAnswerer:
    """The torch target of a request (see child.py): a plain model, or a base with an adapter as it was trained.

    Raises ModelError.
    """
    model, place = load_model(request)
    if request["kind"] == "tuned":
        model = adapter.load(model, Path(request["path"]))
    table = place.table
    tokenizer = base.load_tokenizer(Path(table.base), trust_remote_code=table.trust_remote_code)
    return TorchAnswerer(model, tokenizer, place=place)


class TorchAnswerer:
    """A causal language model with the tokenizer that turns its answers into text.

    Rows are taken `batch_size` at a time, fewer where its place has no room for as many, and half of those where memory
    runs out all the same.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = MOST_ROWS, place: Place | None = None) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.note = place.note if place else ""
        self.room_bytes: float = place.room_bytes if place else math.inf

    def generate(
        self,
        rows: Sequence[EvalRow],
        *,
        limits: Limits,
        on_done: Callable[[int], object] | None = None,
    ) -> list[str]:
        """Greedy answers; batches of prompts of like length, longest first so that memory shows its peak at once.

        From here on a small model on a CPU holds the weights that it multiplies with, see `nf4.hold_unpacked`.
        """
        if hold_unpacked(self.model, most_bytes=round(min(MOST_UNPACKED_BYTES, max(self.room_bytes, 0) / 2))):
            self.room_bytes /= 2
        texts = [""] * len(rows)
        done = 0
        lengths = [len(row.prompt_ids) + limits.max_new_tokens for row in rows]

        def answer(batch: Sequence[int]) -> list[list[int]]:
            return greedy(self.model, [rows[index].prompt_ids for index in batch], limits=limits)

        for batch, answers in in_memory(self._batches(lengths), answer):
            for index, ids in zip(batch, answers, strict=True):
                texts[index] = self.tokenizer.decode(ids, skip_special_tokens=True)
            done += len(batch)
            if on_done:
                on_done(done)
        return texts

    @torch.no_grad()
    def losses(self, rows: Sequence[EvalRow]) -> list[tuple[float, int]]:
        """(summed nats, trained tokens) of each row; float32 cross entropy over the trained positions."""
        results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
        there = [row for row in range(len(rows)) if rows[row].trained]
        batches = self._batches([len(rows[row].input_ids) for row in there])

        def sums(batch: Sequence[int]) -> list[tuple[float, int]]:
            return _batch_losses(self.model, [rows[there[place]] for place in batch])

        for batch, found in in_memory(batches, sums):
            for place, result in zip(batch, found, strict=True):
                results[there[place]] = result
        return results

    @torch.no_grad()
    def trained_logits(self, rows: Sequence[EvalRow]) -> Iterator[np.ndarray]:
        """Logits float32 (trained tokens, vocabulary) of each row, in order."""
        for row in rows:
            ids = torch.tensor([row.input_ids], device=self.model.device)
            kept = torch.tensor([index - 1 for index in row.trained], device=self.model.device, dtype=torch.long)
            with autocast(self.model):
                logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
            yield logits[0].float().cpu().numpy()

    def decode_speed(self, row: EvalRow, *, limits: Limits) -> tuple[int, float]:
        """(tokens, seconds) of one prompt alone, its first token left out."""
        times: list[float] = []
        greedy(self.model, [row.prompt_ids], limits=limits, on_token=lambda: times.append(time.perf_counter()))
        return len(times) - 1, times[-1] - times[0]

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """The numbers of rows of like length, the longest first, as many at once as memory has room for."""
        a_token = token_bytes(self.model.config, held_dtype(self.model).itemsize)
        most = self.room_bytes / a_token
        return by_length(lengths, most_rows=self.batch_size, most_tokens=most, longest_first=True)


@torch.no_grad()
def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    limits: Limits,
    on_token: Callable[[], object] | None = None,
    is_done: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """New token ids of each prompt, end token left out; one batch, padded on the left.

    Finished rows leave the batch once they are half of it. `on_token` is called when each step's tokens are known;
    `is_done`, of a single prompt, may end its answer.
    """
    device = next(model.parameters()).device
    ids, mask = (torch.from_numpy(part).to(device) for part in padded(prompts, on_the_left=True))
    ends = torch.tensor(limits.eos_ids, device=device)
    rooms = [min(limits.max_new_tokens, limits.context_length - len(prompt)) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    places = list(range(len(prompts)))
    open_rows = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache, cache_name = None, _cache_name(model)
    for _ in range(max(rooms)):
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with autocast(model):
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{cache_name: cache},
            )
        cache = output[cache_name]
        tokens = output.logits[:, -1].argmax(dim=-1)
        open_rows = open_rows & ~torch.isin(tokens, ends)
        for place, token, is_open in zip(places, tokens.tolist(), open_rows.tolist(), strict=True):
            if is_open:
                answers[place].append(token)
        if on_token:
            on_token()
        if is_done and is_done(answers[0]):
            break
        still_open = int(open_rows.sum())
        if not still_open:
            break
        if still_open <= len(places) // 2:
            kept = open_rows.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            tokens, mask, open_rows = tokens[kept], mask[kept], open_rows[kept]
            places = [places[index] for index in kept.tolist()]
        ids = tokens.unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(places), 1)], dim=1)
    return [ids[:room] for ids, room in zip(answers, rooms, strict=True)]


def _cache_name(model: Any) -> str:
    """What the model calls its keys and values: "cache" since transformers 5.24, "past_key_values" before."""
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "cache" if "cache" in inspect.signature(causal_lm.forward).parameters else "past_key_values"


def _batch_losses(model: Any, rows: Sequence[EvalRow]) -> list[tuple[float, int]]:
    """Summed nats and their number for each row, padded on the right where causal attention never looks.

    Logits exist for a chunk of positions at a time. Architectures whose head the training does not know are called
    whole, with the logits of the trained positions of all rows.
    """
    causal_lm = find_base(model)
    ids = torch.from_numpy(padded([row.input_ids for row in rows])[0]).to(model.device)
    targets = torch.from_numpy(padded([row.labels[1:] for row in rows], pad_id=NOT_TRAINED)[0]).to(model.device)
    which, where = (targets != NOT_TRAINED).nonzero(as_tuple=True)
    wanted = targets[which, where]
    with autocast(model):
        if has_known_head(causal_lm):
            states = causal_lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[which, where]
            nats = [_nats(head_logits(causal_lm, some), own) for some, own in chunks(causal_lm, states, wanted)]
        else:
            kept, places = where.unique(return_inverse=True)
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
            nats = [_nats(logits[which, places].float(), wanted)]
    of_row = torch.zeros(len(rows), dtype=torch.float64, device=model.device)
    of_row.index_add_(0, which, torch.cat(nats)[: len(which)].double())
    return list(zip(of_row.tolist(), which.bincount(minlength=len(rows)).tolist(), strict=True))


def _nats(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy (n,) of float32 logits (n, vocabulary) against tokens (n,)."""
    return torch.nn.functional.cross_entropy(logits, wanted, ignore_index=NOT_TRAINED, reduction="none")
