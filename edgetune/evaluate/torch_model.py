"""A torch model as an Answerer: batched greedy generation with a KV cache, and losses of whole rows.

transformers' `generate` gives the same answers, but computes rows on that have ended until the last one has: slower.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetune.evaluate.rows import EvalRow, Limits
from edgetune.lora import adapter
from edgetune.model import base
from edgetune.model.device import autocast, compute_dtype, device
from edgetune.model.nf4 import hold_unpacked
from edgetune.recipe import ModelTable
from edgetune.runtime.batches import by_length, padded

_LOGIT_VALUES = 64_000_000
"""Float32 logits held at once while taking losses: 256 MB."""


def load(request: Mapping[str, Any]) -> TorchAnswerer:
    """The torch target of a request (see child.py): a plain model, or a base with an adapter as it was trained.

    Raises ModelError.
    """
    table = ModelTable(**request["model"])
    if request["kind"] == "merged":
        on = device()
        model = base.load_merged(Path(table.base), dtype=compute_dtype(table.compute_dtype, on), device=on)
    else:
        model = base.load_base(table)
    if request["kind"] == "tuned":
        model = adapter.load(model, Path(request["path"]))
    return TorchAnswerer(model, base.load_tokenizer(Path(table.base), trust_remote_code=table.trust_remote_code))


class TorchAnswerer:
    """A causal language model with the tokenizer that turns its answers into text."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 64) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size

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
        hold_unpacked(self.model)
        texts = [""] * len(rows)
        done = 0
        lengths = [len(row.prompt_ids) for row in rows]
        for batch in by_length(lengths, most_rows=self.batch_size, longest_first=True):
            prompts = [rows[index].prompt_ids for index in batch]
            for index, ids in zip(batch, greedy(self.model, prompts, limits=limits), strict=True):
                texts[index] = self.tokenizer.decode(ids, skip_special_tokens=True)
            done += len(batch)
            if on_done:
                on_done(done)
        return texts

    @torch.no_grad()
    def losses(self, rows: Sequence[EvalRow]) -> list[tuple[float, int]]:
        """(summed nats, trained tokens) of each row; float32 cross entropy over the trained positions."""
        results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
        for batch in self._loss_batches(rows):
            sums, counts = _batch_losses(self.model, [rows[index] for index in batch])
            for index, nats, count in zip(batch, sums.tolist(), counts.tolist(), strict=True):
                results[index] = (nats, count)
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

    def _loss_batches(self, rows: Sequence[EvalRow]) -> Iterator[list[int]]:
        """Indices of rows of like length, as many at once as `batch_size` and the memory for logits allow."""
        there = [index for index, row in enumerate(rows) if row.input_ids]
        lengths = [len(rows[index].input_ids) for index in there]
        most = _LOGIT_VALUES // self.model.config.get_text_config().vocab_size
        for batch in by_length(lengths, most_rows=self.batch_size, most_tokens=most, longest_first=True):
            yield [there[place] for place in batch]


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


def _batch_losses(model: Any, rows: Sequence[EvalRow]) -> tuple[Tensor, Tensor]:
    """Summed nats (B,) and counts (B,) of rows, padded on the right where causal attention never looks."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(padded([row.input_ids for row in rows])[0])
    targets = torch.from_numpy(padded([row.labels[1:] for row in rows], pad_id=-100)[0])
    kept = (targets != -100).any(dim=0).nonzero().squeeze(1)
    targets = targets[:, kept].to(device)
    if not len(kept):
        return torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.long)
    with autocast(model):
        logits = model(input_ids=ids.to(device), use_cache=False, logits_to_keep=kept.to(device)).logits
    nats = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
    ).view_as(targets)
    return nats.double().sum(dim=1), (targets != -100).sum(dim=1)
