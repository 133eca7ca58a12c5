"""The loss: cross entropy in float32 over trained positions only; nothing else reaches the output head.

In the flow: packed batch -> decoder body -> hidden states at trained positions -> head in chunks -> (sum, count). A
frozen head is fused with the loss (head_loss.py); one that is trained, or has an adapter, is checkpointed in chunks.
Sum and count stay apart so that gradient accumulation can weigh by tokens. Architectures that segments.py does not know
are called whole, sample by sample in padded rows: slower, and right for every causal model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edgetune.data.encode import NOT_TRAINED
from edgetune.model.device import autocast, find_base
from edgetune.train import segments
from edgetune.train.batches import collate_rows, cut, in_parts, packed_rows
from edgetune.train.head_loss import can_fuse, chunk_tokens, fill_up, fused_cross_entropy, head_weight, logit_map


def loss_sum(model: Any, batch: Any, *, is_fused: bool = True) -> tuple[Tensor, int]:
    """Summed cross entropy (nats, float32 scalar with gradient) of a packed batch, and how many tokens it sums over.

    `batch` has input_ids, labels, position_ids, segment_ids, each (B, T); labels are not shifted, -100 is not trained,
    segment 0 is padding. Not fused, the logits of all trained positions exist at once.
    """
    causal_lm = find_base(model)
    if causal_lm.config._attn_implementation != segments.NAME:
        return _loss_of_rows(causal_lm, batch)
    states, targets = trained_states(causal_lm, batch)
    head = causal_lm.get_output_embeddings()
    if not is_fused:
        return _head_loss(causal_lm, fill_up(states), fill_up(targets, NOT_TRAINED)), len(targets)
    if can_fuse(head):
        return fused_cross_entropy(states, head_weight(head), targets, logit_map(causal_lm.config)), len(targets)
    total = torch.zeros((), device=states.device)
    for rows, wanted in chunks(causal_lm, states, targets):
        if len(wanted) < len(targets) and torch.is_grad_enabled():
            total = total + checkpoint(_head_loss, causal_lm, rows, wanted, use_reentrant=False)
        else:
            total = total + _head_loss(causal_lm, rows, wanted)
    return total, len(targets)


def trained_states(causal_lm: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """What reaches the head: hidden states (n, hidden) at trained positions, and the token (n,) that follows each.

    The model's attention must be that of `use_segments`.
    """
    ids, targets, found = _flatten(batch)
    size = segments.round_up(len(ids))
    positions = F.pad(batch.position_ids[batch.segment_ids > 0], (0, size - len(ids)))
    output = causal_lm.get_decoder()(
        input_ids=F.pad(ids, (0, size - len(ids)))[None],
        position_ids=positions[None],
        use_cache=False,
        segments=found,
    )
    trained = (targets != NOT_TRAINED).nonzero()[:, 0]
    return output.last_hidden_state[0].index_select(0, trained), targets[trained]


def chunks(causal_lm: Any, states: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """States (n, hidden) and targets (n,) in parts whose logits are small, sizes on a grid, filled up."""
    size = chunk_tokens(causal_lm.config.get_text_config().vocab_size)
    for rows, wanted in zip(states.split(size), targets.split(size), strict=True):
        yield fill_up(rows), fill_up(wanted, NOT_TRAINED)


def _flatten(batch: Any) -> tuple[Tensor, Tensor, segments.Segments]:
    """Ids and targets (N,) of a packed batch without its pads, and where its samples lie."""
    is_real = batch.segment_ids > 0
    ids = batch.input_ids[is_real]
    targets = F.pad(batch.labels[:, 1:], (0, 1), value=NOT_TRAINED)[is_real]
    return ids, targets, segments.find_segments(_lengths(batch.segment_ids)).to(ids.device)


@torch.no_grad()
def evaluate_loss(
    model: Any,
    tokens: Any,
    *,
    pad_id: int,
    max_seq_len: int,
    batch_size: int = 8,
    part: slice = slice(None),
    pieces: int = 1,
) -> tuple[float, int]:
    """Summed loss (nats) and number of trained tokens over all rows of `tokens`, or `part` of their micro-batches, each
    cut into so many pieces; dropout off.

    `tokens` is any sequence of encoded rows (input_ids, labels). The model keeps its mode.
    """
    total, count = 0.0, 0
    with without_dropout(model), autocast(model):
        for rows in cut(in_parts(packed_rows(tokens, max_seq_len=max_seq_len), batch_size)[part], pieces):
            summed, number = loss_sum(model, collate_rows(tokens, rows, pad_id=pad_id).to(model.device))
            total += float(summed)
            count += number
    return total, count


@torch.no_grad()
def trained_log_probabilities(
    model: Any, tokens: Any, *, pad_id: int, max_seq_len: int, batch_size: int
) -> Iterator[Tensor]:
    """Log-probabilities (n, vocabulary) float32 at the trained positions of all rows, a part of them at a time.

    Dropout is off; the model's attention must be that of `use_segments`.
    """
    with without_dropout(model), autocast(model):
        for rows in in_parts(packed_rows(tokens, max_seq_len=max_seq_len), batch_size):
            batch = collate_rows(tokens, rows, pad_id=pad_id).to(model.device)
            states, targets = trained_states(model, batch)
            left = len(targets)
            for some, _ in chunks(model, states, targets):  # the last is filled up
                count = min(left, len(some))
                left -= count
                yield head_logits(model, some)[:count].log_softmax(-1)


def use_segments(model: Any) -> bool:
    """Switch the model to attention inside packed samples; False, and no change, if its architecture is not known."""
    from transformers import AttentionInterface

    config = find_base(model).config
    if config.model_type not in segments.SUPPORTED_TYPES:
        return False
    AttentionInterface.register(segments.NAME, segments.segment_attention)
    config._attn_implementation = segments.NAME
    return True


@contextlib.contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Dropout off inside the block. Not model.eval(): see fuse() for what that does to bitsandbytes' weights."""
    is_dropping = [module for module in model.modules() if module.training and _drops(module)]
    for module in is_dropping:
        module.training = False
    try:
        yield
    finally:
        for module in is_dropping:
            module.training = True


def _drops(module: Any) -> bool:
    """Whether a module drops something while it trains: itself, or in the attention that it calls."""
    if isinstance(module, torch.nn.Dropout) or getattr(module, "attention_dropout", None):
        return True
    return any(isinstance(part, torch.nn.Dropout) for part in module.children())


def _lengths(segment_ids: Tensor) -> Tensor:
    """Lengths of the samples of packed rows, in reading order; on the CPU. segment_ids (B, T) -> (samples,)."""
    ids = segment_ids.cpu()
    first_of_row = torch.arange(len(ids))[:, None] * (int(ids.max()) + 1)
    _, lengths = torch.unique_consecutive((ids + first_of_row)[ids > 0], return_counts=True)
    return lengths


def head_logits(causal_lm: Any, hidden: Tensor) -> Tensor:
    """(n, hidden) states -> float32 logits (n, vocabulary), after what the architecture does to them."""
    mapped = logit_map(causal_lm.config)
    logits = causal_lm.get_output_embeddings()(hidden).float()
    if mapped.scale != 1.0:
        logits = logits / mapped.scale
    return logits if mapped.cap is None else torch.tanh(logits / mapped.cap) * mapped.cap


def _head_loss(causal_lm: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Summed cross entropy of (n, hidden) states against (n,) targets."""
    return F.cross_entropy(head_logits(causal_lm, hidden), targets, reduction="sum")


def _loss_of_rows(causal_lm: Any, batch: Any) -> tuple[Tensor, int]:
    """The same loss through the model's own forward, one right-padded row a sample."""
    ids, targets, found = _flatten(batch)
    total = torch.zeros((), device=ids.device)
    for bucket in found.buckets:
        is_sample = bucket.is_real[:, 0]
        tokens, is_real = bucket.tokens[is_sample], bucket.is_real[is_sample]
        logits = causal_lm(input_ids=ids[tokens], attention_mask=is_real.long(), use_cache=False).logits
        wanted = targets[tokens].masked_fill(~is_real, NOT_TRAINED)
        is_trained = wanted != NOT_TRAINED
        total = total + F.cross_entropy(logits[is_trained].float(), wanted[is_trained], reduction="sum")
    return total, int((targets != NOT_TRAINED).sum())
