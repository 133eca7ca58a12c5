"""Cross entropy fused with the output projection: logits exist for a few positions at a time, gradients at once.

Beside a vocabulary of 128k to 256k the logits of a batch outweigh a small model. Here the positions pass the head in
chunks; each chunk's gradient for the hidden states is taken before the next chunk is made, in the memory of its logits,
so that the backward pass neither keeps them nor computes them again. The head must be frozen, as LoRA's is.
Source: the fused linear cross entropy of Liger Kernel, arXiv:2410.10989, section 3.2, for a frozen head.

A head that is held in 8 or 4 bits is dequantised a part of the vocabulary at a time, and dequantising is dear: there
the parts are gone through twice for all positions, once for the sums of the softmax and once for the gradient, as in
Cut Cross-Entropy, arXiv:2411.09009, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetune.model.embedding import QuantizedHead, TokenVectors
from edgetune.model.memory import CHUNK_LOGITS_BYTES, LEAST_CHUNK, MOST_CHUNK
from edgetune.train.segments import grid_step, round_up


@dataclass(frozen=True)
class LogitMap:
    """What an architecture does to the head's products: z -> cap * tanh(z / scale / cap)."""

    scale: float = 1.0
    """Granite's logits_scaling."""
    cap: float | None = None
    """Gemma 2's final_logit_softcapping."""


def chunk_tokens(vocabulary: int) -> int:
    """How many positions have logits at one time: a size of the grid, so that whole chunks need no filling up."""
    most = max(LEAST_CHUNK, min(MOST_CHUNK, CHUNK_LOGITS_BYTES // (4 * vocabulary)))
    return most // grid_step(most) * grid_step(most)


def fill_up(rows: Tensor, value: float = 0.0) -> Tensor:
    """The rows, and more of `value` below them until their number lies on the grid of sizes."""
    spare = round_up(len(rows)) - len(rows)
    return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, spare), value=value) if spare else rows


def can_fuse(head: Any) -> bool:
    """Whether the head is a linear, plain or quantised, that nothing trains: no adapter, no trained copy, no hook."""
    if head.__class__ not in (nn.Linear, QuantizedHead) or head.bias is not None:
        return False
    is_hooked = bool(head._forward_hooks or head._forward_pre_hooks)
    return not is_hooked and not any(parameter.requires_grad for parameter in head.parameters())


def head_weight(head: Any) -> Tensor | TokenVectors:
    """What `fused_cross_entropy` takes of a head that can be fused."""
    vectors: Tensor | TokenVectors = head.vectors if isinstance(head, QuantizedHead) else head.weight
    return vectors


def logit_map(config: Any) -> LogitMap:
    """The map of a transformers config."""
    return LogitMap(
        getattr(config, "logits_scaling", None) or 1.0, getattr(config, "final_logit_softcapping", None) or None
    )


def fused_cross_entropy(
    hidden: Tensor, weight: Tensor | TokenVectors, targets: Tensor, mapped: LogitMap = LogitMap()
) -> Tensor:
    """Summed cross entropy, a float32 scalar, of states (n, hidden) under a frozen head (vocabulary, hidden).

    targets (n,) int64. Products are in autocast's type, else in the type of the states, of quantised vectors in theirs;
    the loss is in float32.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    loss: Tensor = _FusedCrossEntropy.apply(
        hidden, weight if isinstance(weight, TokenVectors) else weight.to(dtype), targets, mapped
    )
    return loss


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor | TokenVectors, targets: Tensor, mapped: LogitMap) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        is_whole = not isinstance(weight, TokenVectors)
        size = chunk_tokens(weight.shape[0]) if is_whole else MOST_CHUNK
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            rows, wanted = hidden[part].to(weight.dtype), targets[part, None]
            slope = None if gradient is None else gradient[part]
            total += (_loss if is_whole else _loss_by_parts)(rows, weight, wanted, mapped, slope)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None


def _loss(rows: Tensor, weight: Tensor, wanted: Tensor, mapped: LogitMap, gradient: Tensor | None) -> Tensor:
    """Summed loss of rows (n, hidden) and targets (n, 1), all their logits at once; fills in `gradient` (n, hidden)."""
    logits = torch.mm(fill_up(rows), weight.t())[: len(rows)].float()
    slope = _apply(logits, mapped)
    logits -= logits.amax(1, keepdim=True)
    picked = logits.gather(1, wanted)
    sums = logits.exp_().sum(1, keepdim=True)
    if gradient is not None:
        logits /= sums
        logits.scatter_add_(1, wanted, torch.full_like(picked, -1.0))
        if slope is not None:
            logits *= slope
        gradient.copy_(torch.mm(fill_up(logits.to(weight.dtype)), weight)[: len(rows)])
    return (sums.log() - picked).sum()


def _loss_by_parts(
    rows: Tensor, vectors: TokenVectors, wanted: Tensor, mapped: LogitMap, gradient: Tensor | None
) -> Tensor:
    """The same for a quantised head, with the logits of a part of the vocabulary at a time."""
    filled, count = fill_up(rows), len(rows)
    most = torch.full((count, 1), float("-inf"), device=rows.device)
    sums, picked = torch.zeros_like(most), torch.zeros_like(most)
    for start, part in vectors.parts():
        logits = torch.mm(filled, part.t())[:count].float()
        _apply(logits, mapped)
        place, is_here = _places(wanted, start, len(part))
        picked += logits.gather(1, place) * is_here
        higher = torch.maximum(most, logits.amax(1, keepdim=True))
        sums = sums * (most - higher).exp() + logits.sub_(higher).exp_().sum(1, keepdim=True)
        most = higher
        del logits, part  # else they would be there beside the next ones
    normaliser = most + sums.log()
    if gradient is not None:
        total = torch.zeros(gradient.shape, device=rows.device)
        for start, part in vectors.parts():
            logits = torch.mm(filled, part.t())[:count].float()
            slope = _apply(logits, mapped)
            place, is_here = _places(wanted, start, len(part))
            logits.sub_(normaliser).exp_().scatter_add_(1, place, -is_here.float())
            if slope is not None:
                logits *= slope
            total += torch.mm(fill_up(logits.to(part.dtype)), part)[:count]
            del logits, slope, part
        gradient.copy_(total)
    return (normaliser - picked).sum()


def _places(wanted: Tensor, start: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Where in a part of the vocabulary each target (n, 1) stands, and whether it stands in it at all."""
    place = wanted - start
    is_here = (place >= 0) & (place < tokens)
    return place.clamp(0, tokens - 1), is_here


def _apply(logits: Tensor, mapped: LogitMap) -> Tensor | float | None:
    """Map the logits in place; what their gradient is multiplied by, if by anything."""
    if mapped.scale != 1.0:
        logits /= mapped.scale
    if mapped.cap is None:
        return None if mapped.scale == 1.0 else 1 / mapped.scale
    logits.div_(mapped.cap).tanh_()
    slope = logits.square().neg_().add_(1).div_(mapped.scale)
    logits *= mapped.cap
    return slope
