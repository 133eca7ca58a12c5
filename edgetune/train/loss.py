"""The loss: cross entropy in float32 over trained positions only; nothing else reaches the output head.

In the flow: packed batch -> decoder body -> hidden states at trained positions -> head in chunks -> (sum, count).
Sum and count stay apart so that gradient accumulation can weigh by tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def loss_sum(model: Any, batch: Any, *, chunk_tokens: int = 4096) -> tuple[Tensor, int]:
    """Summed cross entropy (nats, float32 scalar with gradient) of a packed batch, and how many tokens it sums over.

    `batch` has input_ids, labels, position_ids, segment_ids, each (B, T); labels are not shifted.
    """
    raise RuntimeError("being written")


@torch.no_grad()
def evaluate_loss(model: Any, tokens: Any, *, pad_id: int, max_seq_len: int, batch_size: int = 8) -> tuple[float, int]:
    """Summed loss (nats) and number of trained tokens over all rows of `tokens`; dropout off, same packing as training."""
    raise RuntimeError("being written")
