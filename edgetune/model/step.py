"""What a base's layers keep for a training step, from their shapes alone; memory.py adds it to what stays.

The tensors are those that our own loop keeps (train/fused.py, train/segments.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetune.recipe import Recipe

PLAIN_ATTENTION_LENGTH = 256
"""Samples up to this length have their attention's shares kept on a CPU; longer ones, and a GPU, keep none."""


@dataclass(frozen=True)
class Step:
    """One micro-batch of rows: what its tensors are. Widths in elements, `item` bytes each."""

    recipe: Recipe
    config: Any
    linears: dict[str, nn.Module]
    item: int
    kind: str
    sample_tokens: int
    is_decoder: bool
    """Else its rows are padded, which FlashAttention does not take."""
    names: tuple[str, ...]
    """Of all modules."""

    @property
    def tokens(self) -> int:
        """Of a micro-batch: a decoder's rows are packed, an encoder's as long as the longest."""
        length = self.recipe.data.max_seq_len if self.is_decoder else self.sample_tokens
        return self.recipe.batch_size * length

    @property
    def heads_width(self) -> int:
        heads = self.config.num_attention_heads
        return heads * (getattr(self.config, "head_dim", None) or self.config.hidden_size // heads)

    @property
    def attention_width(self) -> float:
        """Width of what attention keeps, as `layer_bytes` says."""
        is_capped = getattr(self.config, "attn_logit_softcapping", None) is not None
        if self.kind == "cpu" or self.item > 2 or is_capped or not self.is_decoder:
            return 5 * self.heads_width
        heads = self.config.num_attention_heads
        return 2 * self.heads_width * (1 + (getattr(self.config, "num_key_value_heads", None) or heads) / heads)

    @property
    def normed_width(self) -> int:
        """Width of queries and keys where each head's are normed (Qwen3, Gemma 3), else 0."""
        projections = [name for name in self.names if name.endswith((".q_norm", ".k_norm"))]
        if not projections:
            return 0
        heads = self.config.num_attention_heads
        return self.heads_width * (heads + self.config.num_key_value_heads) // heads

    @property
    def mlp_width(self) -> int:
        wide = getattr(self.config, "intermediate_size", None) or 4 * self.config.hidden_size
        return max(wide) if isinstance(wide, list | tuple) else wide

    def layer_bytes(self) -> float:
        """What one layer keeps for its backward pass.

        Queries, keys and values (of all heads), attention's output twice, in slots and in place, and on a GPU with
        FlashAttention these once and keys and values of their own heads; four values of the MLP's width; the inputs of
        the other linears, one for those that share it; both norms' inputs in float32; for every adapter its inner
        values and, with dropout, a byte for each input. Of short samples on a CPU attention's shares too.
        """
        config, layers, lora = self.config, self.config.num_hidden_layers, self.recipe.lora
        targets = [weight_of(m) for name, m in self.linears.items() if is_target(name, lora.target_modules)]
        inner = lora.r * len(targets) / layers
        width = 2 * config.hidden_size + self.attention_width + 4 * self.mlp_width + inner
        kept = self.tokens * (width * self.item + (2 * config.hidden_size + self.normed_width) * 4)
        if lora.dropout:
            kept += self.tokens * sum(weight.shape[1] for weight in targets) / layers
        if self.kind == "cpu" and self.sample_tokens <= PLAIN_ATTENTION_LENGTH:
            kept += self.tokens * self.sample_tokens * config.num_attention_heads * self.item
        return kept

    def saved_bytes(self) -> int:
        """What the layers keep until their backward pass: everything, or with checkpointing their inputs."""
        table, layers = self.recipe.train, self.config.num_hidden_layers
        inputs = self.tokens * self.config.hidden_size * self.item
        last = inputs + self.tokens * self.config.hidden_size * 4  # the last norm's
        if not self.recipe.gradient_checkpointing:
            return round(self.layer_bytes() * layers + last)
        is_offloaded = table.offload_activations and self.kind != "cpu"
        return round(inputs * (2 if is_offloaded else layers) + last)

    def block_bytes(self) -> int:
        """The backward pass of a layer: a gradient of the MLP's width and one of the hidden states, the others in
        place of tensors that have done their work; with checkpointing the layer's own tensors too, made again.
        """
        gradients = self.tokens * (self.mlp_width + self.config.hidden_size) * self.item
        return round(gradients + (self.layer_bytes() if self.recipe.gradient_checkpointing else 0))


def is_target(name: str, targets: str | Iterable[str]) -> bool:
    """PEFT's rule: a module's path, or its end after a dot."""
    if isinstance(targets, str):
        return True
    return any(name == target or name.endswith(f".{target}") for target in targets)


def weight_of(module: nn.Module) -> torch.Tensor:
    """A linear's weight."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight
