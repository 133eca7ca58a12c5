"""Attention inside packed samples: each sample attends to itself alone, at the cost of its own length.

In the flow: packed batch -> `flatten` (pads dropped, samples one after another) -> decoder body, whose attention calls
`segment_attention`. A dense block-diagonal mask costs T * T a row and its CPU kernel is slow; here samples of about the
same length stand side by side, right-padded. Causal attention never looks to the right, so they need no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "edgetune_segments"
SUPPORTED_TYPES = frozenset(
    {
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "phi3",
        "gemma",
        "gemma2",
        "granite",
        "smollm3",
        "olmo",
        "olmo2",
        "ministral",
        "gemma3_text",
        "ernie4_5",
        "olmo3",
        "phi",
    }
)
"""config.model_type of decoders whose attention is nothing but causal (and windowed) softmax attention."""
MATRIX_LENGTH = 256
"""Up to this length, on a CPU, plain matrix products beat torch's flash kernel (6 times at length 69, bfloat16)."""


@dataclass(frozen=True)
class Bucket:
    """Samples of about the same length. Slot [i, j] holds token j of sample i, or some token past the sample's end."""

    tokens: Tensor
    """(S, L) int64: which flat token stands in each slot. S and L are on grids: rows may hold no sample at all."""
    is_real: Tensor
    """(S, L) bool: False where no token of the sample stands."""


@dataclass(frozen=True)
class Segments:
    """Where the samples of a flat batch lie, by buckets, and the way back. N tokens, then pads up to `size`."""

    buckets: tuple[Bucket, ...]
    gather: Tensor
    """(slots,) int64: the flat token of every slot, all buckets one after another."""
    scatter: Tensor
    """(N,) int64: the slot of every flat token."""
    ends: Tensor
    """(S + 1,) int32: 0, then where each sample ends; the pads up to `size` are one more sample."""
    longest: int
    """Tokens of the longest of these."""

    def to(self, device: torch.device) -> Segments:
        """The same on another device."""
        buckets = tuple(Bucket(item.tokens.to(device), item.is_real.to(device)) for item in self.buckets)
        return Segments(buckets, self.gather.to(device), self.scatter.to(device), self.ends.to(device), self.longest)


def round_up(count: int, steps: int = 8) -> int:
    """The next number of a grid with `steps` numbers an octave.

    On a CPU, oneDNN compiles a bfloat16 product for each new shape and keeps it: 2 MiB and milliseconds each. Sizes on
    a grid keep the shapes few.
    """
    step = grid_step(count, steps)
    return -(-count // step) * step


def grid_step(count: int, steps: int = 8) -> int:
    """How far apart the grid's numbers are around a count."""
    return max(1, 2 ** (max(count - 1, 1).bit_length() - 1) // steps)


def find_segments(lengths: Tensor) -> Segments:
    """Segments of samples with these lengths (S,), which follow one another without pads."""
    starts = F.pad(lengths.cumsum(0), (1, 0))[:-1]
    widths = torch.tensor([_width(length) for length in lengths.tolist()])
    scatter = torch.empty(int(lengths.sum()), dtype=torch.long)
    buckets, filled = [], 0
    for width in sorted(set(widths.tolist())):
        chosen = (widths == width).nonzero()[:, 0]
        ends = F.pad(lengths[chosen], (0, round_up(len(chosen), 4) - len(chosen)))
        inside = torch.arange(width).expand(len(ends), -1)
        is_real = inside < ends[:, None]
        tokens = F.pad(starts[chosen], (0, len(ends) - len(chosen)))[:, None] + torch.where(is_real, inside, 0)
        scatter[tokens[is_real]] = filled + is_real.reshape(-1).nonzero()[:, 0]
        buckets.append(Bucket(tokens, is_real))
        filled += tokens.numel()
    gather = torch.cat([bucket.tokens.reshape(-1) for bucket in buckets])
    return Segments(tuple(buckets), gather, scatter, *_ends(lengths))


def _ends(lengths: Tensor) -> tuple[Tensor, int]:
    """`ends` and `longest` of samples with these lengths, the pads that fill up the batch among them."""
    total = int(lengths.sum())
    spare = round_up(total) - total
    filled = F.pad(lengths, (0, 1), value=spare) if spare else lengths
    return F.pad(filled.cumsum(0), (1, 0)).to(torch.int32), int(filled.max())


def _width(length: int) -> int:
    """Slots for a sample of this length: multiples of 32 up to 128, then four widths an octave."""
    return max(-(-length // 32) * 32, round_up(length, 4) if length > 128 else 0)


def segment_attention(
    module: Any,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within segments; the signature of transformers' attention functions.

    query (1, H, size, D), key and value (1, K, size, D) with K dividing H -> (1, size, H, D); at the pads, which
    nothing looks at, whatever is finite.
    """
    assert attention_mask is None
    if softcap is None and can_flash(query.device, query.dtype, query.shape[-1]):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return _flash(q, k, v, segments, scale=scaling, dropout=dropout, window=sliding_window)[None], None
    repeats = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    real, gather, scatter = len(segments.scatter), segments.gather, segments.scatter
    sides = [_Move.apply(x[0].transpose(0, 1)[:real], gather, scatter) for x in (query, key, value)]
    outputs, filled = [], 0
    for bucket in segments.buckets:
        count, length = bucket.tokens.shape
        q, k, v = (x[filled : filled + count * length].view(count, length, *x.shape[1:]).transpose(1, 2) for x in sides)
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        attended = _attend(q, k, v, scale=scale, dropout=dropout, window=sliding_window, softcap=softcap)
        outputs.append(attended.transpose(1, 2).reshape(count * length, *query.shape[1::2]))
        filled += count * length
    flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    moved = _Move.apply(flat, scatter, gather, True)
    return F.pad(moved, (0, 0, 0, 0, 0, query.shape[2] - real))[None], None


@lru_cache(maxsize=8)
def can_flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether torch's FlashAttention runs there: NVIDIA from Ampere on, 16-bit types, heads of up to 256 values."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or width > 256 or width % 8:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    *,
    scale: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Causal attention of flat samples: q (size, H, D), k and v (size, K, D) -> (size, H, D).

    torch.nn.attention.varlen offers the same kernel since torch 2.10, but no dropout; this is what it calls, and older
    versions have it too. Source: FlashAttention-2, arXiv:2307.08691.
    """
    left = None if window is None or window >= segments.longest else window - 1
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        *(q, k, v, segments.ends, segments.ends, segments.longest, segments.longest, dropout, True, False),
        scale=scale,
        window_size_left=left,
        window_size_right=None if left is None else 0,
    )[0]
    return attended


def _attend(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of whole rows: (S, H, L, D) each -> (S, H, L, D). Softmax in float32 inside the kernel."""
    length = q.shape[2]
    is_windowed = window is not None and window < length
    is_plain = not is_windowed and softcap is None
    if is_plain and not (q.device.type == "cpu" and length <= MATRIX_LENGTH):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=dropout)
    mask = _mask(length, window if is_windowed else None, q.dtype, q.device)
    q3, k3, v3 = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    if softcap is None:
        scores = torch.baddbmm(mask, q3, k3.transpose(1, 2), alpha=scale)
    else:
        scores = torch.tanh(torch.bmm(q3, k3.transpose(1, 2)) * (scale / softcap)) * softcap + mask
    shares = scores.softmax(-1)
    if dropout:
        shares = F.dropout(shares, dropout)
    return torch.bmm(shares.to(v3.dtype), v3).view(q.shape)


@lru_cache(maxsize=32)
def _mask(length: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(L, L): 0 where a token may look, minus infinity to its right and before its window."""
    hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    if window is not None:
        hidden |= torch.ones_like(hidden).tril(-window)
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


class _Move(torch.autograd.Function):
    """Rows to other places, x[there]; going back is again a selection, x[back], cheaper than adding by index.

    From flat to slots: slots past a sample's end repeat a token but get no gradient, for nothing real looks at them.
    From slots to flat: those slots are left out, so on the way back they must be zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, to_flat: bool = False) -> Tensor:
        ctx.save_for_backward(there, back)
        ctx.to_flat = to_flat
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        there, back = ctx.saved_tensors
        gradient = gradients[0]
        if not ctx.to_flat:
            return gradient.index_select(0, back), None, None, None
        slots = gradient.new_zeros(len(back), *gradient.shape[1:])
        slots[there] = gradient
        return slots, None, None, None
