"""Memory: a first estimate of training's peak from config.json alone, and the measured peak of this process.

Source of the formula: QLoRA, arXiv:2305.14314, section 3 and appendix G, with the tensors that our own loop keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetune.model.base import empty_model, resolve_base
from edgetune.model.device import compute_dtype, device
from edgetune.model.nf4 import BLOCK_SIZE, quantized_linears
from edgetune.process_memory import peak_resident_bytes, reset_peak_resident
from edgetune.recipe import LoraTable, Recipe

LIBRARY_BYTES = {"cpu": 520 * 1024**2, "cuda": 0}
"""Resident memory of Python with torch, transformers, peft and datasets; CUDA's counter leaves libraries out."""
SLACK = {"cpu": 1.0, "cuda": 0.15}
"""What the allocator holds beyond activations and logits, as a share of them: freed blocks, and temporary ones of the
backward pass. Measured 0.7 to 1.0 with glibc (6 M to 98 M parameters, 2,048 to 8,192 tokens in a micro-batch)."""
LABEL_LOGITS_BYTES = {"cosine": 5 * 4, "linear": 4 * 4}
"""Of one label of a text in a classifier's step: logits, scaled ones, log-probabilities and gradients, float32."""
HEAD_CHUNK_TOKENS = 4096
"""Positions that reach the output head at a time (train/loss.py)."""
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw": 8, "paged_adamw_8bit": 2}
"""Optimizer state of one adapter weight."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by part at the peak of training, and what is counted. `parts` is in the order of the table."""

    parts: dict[str, int]
    peak_bytes: int
    trainable_parameters: int
    base_parameters: int


def estimate(recipe: Recipe, *, trained_share: float = 1.0, labels: int = 0) -> Estimate:
    """What training this recipe needs at its peak, from config.json alone.

    `trained_share` of the tokens have a loss; a classifier's head has so many `labels`. Raises ModelError.
    """
    table = recipe.model
    path = resolve_base(table.base, table.revision, trust_remote_code=table.trust_remote_code)
    model = empty_model(path, trust_remote_code=table.trust_remote_code)
    item = compute_dtype(table.compute_dtype, device()).itemsize
    linears = quantized_linears(model)
    in_linears = sum(_weight(module).numel() for module in linears.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    is_nf4 = table.quantization == "nf4"
    adapter = adapter_parameters(linears, recipe.lora)
    config = model.config.get_text_config()
    activations = _activation_bytes(recipe, config, linears, item)
    head = head_parameters(recipe, labels, config.hidden_size) if recipe.is_classifier else 0
    if recipe.is_classifier:
        logits = _label_bytes(recipe, labels, head)
    else:
        logits = _logit_bytes(recipe, config, trained_share, item)
    trained = adapter + head + (_embedding_parameters(model) if recipe.lora.train_embeddings else 0)
    parts = {
        "Python and libraries": LIBRARY_BYTES.get(device().type, 0),
        "base, linears": round(in_linears * nf4_bytes(table.double_quantization)) if is_nf4 else in_linears * item,
        "base, the rest": (total - in_linears) * item,
        "adapter": adapter * 4,
        "head": head * 4,
        "embedding, trained": (trained - adapter - head) * 4,
        "gradients": trained * 4,
        "optimizer": trained * STATE_BYTES[recipe.train.optimizer],
        "activations": activations,
        "logits": logits,
        "weight brought back from NF4": max(_weight(module).numel() for module in linears.values()) * item * is_nf4,
        "temporary and freed": round((activations + logits) * SLACK.get(device().type, 0.15)),
    }
    return Estimate(parts, sum(parts.values()), trained, total)


def nf4_bytes(double_quantization: bool) -> float:
    """Bytes of one weight in NF4 with its scales: 0.516 with double quantisation, 0.5625 without."""
    scale = 1 + 4 / 256 if double_quantization else 4
    return 0.5 + scale / BLOCK_SIZE


def adapter_parameters(linears: dict[str, nn.Module], lora: LoraTable) -> int:
    """Weights of a new adapter on the targeted linears: r * (in + out) each, and out more with DoRA."""
    shapes = [_weight(module).shape for name, module in linears.items() if _is_target(name, lora.target_modules)]
    return sum(lora.r * (rows + columns) + rows * lora.use_dora for rows, columns in shapes)


def _embedding_parameters(model: Any) -> int:
    """Weights of embedding and output head, those of a tied one counted once."""
    ends = {id(end.weight): end.weight.numel() for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    return sum(ends.values())


def head_parameters(recipe: Recipe, labels: int, hidden: int) -> int:
    """Weights of a classifier's head: a direction for each label, and a bias where it is linear."""
    return labels * (hidden + (recipe.classify.head == "linear"))


def _is_target(name: str, targets: str | Iterable[str]) -> bool:
    """PEFT's rule: a module's path, or its end after a dot."""
    if isinstance(targets, str):
        return True
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _activation_bytes(recipe: Recipe, config: Any, linears: dict[str, nn.Module], item: int) -> int:
    """Tensors kept for the backward pass of one micro-batch, over all layers or, with checkpointing, of one.

    A layer keeps q, k, v, attention's output, four values of the MLP's width, the three other inputs of its linears
    (type of computation), the inputs of its two norms (float32), and r values for each adapter.
    """
    tokens = recipe.train.batch_size * recipe.data.max_seq_len
    layers, hidden, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or hidden // heads
    attention = head * (3 * heads + 2 * (getattr(config, "num_key_value_heads", None) or heads))
    wide = getattr(config, "intermediate_size", None) or 4 * hidden
    wide = max(wide) if isinstance(wide, list | tuple) else wide
    adapters = recipe.lora.r * len(linears) / layers
    kept = tokens * ((2 * hidden + attention + 4 * wide + adapters) * item + 2 * hidden * 4)
    if recipe.train.gradient_checkpointing:
        return round(kept + layers * tokens * hidden * item)
    return round(kept * layers)


def _logit_bytes(recipe: Recipe, config: Any, trained_share: float, item: int) -> int:
    """Logits of the trained positions of a chunk: in the type of computation, in float32, and their gradient."""
    tokens = recipe.train.batch_size * recipe.data.max_seq_len
    share = 1.0 if recipe.data.loss_on == "all" else trained_share
    return round(min(tokens * share, HEAD_CHUNK_TOKENS) * config.vocab_size * (item + 8))


def _label_bytes(recipe: Recipe, labels: int, head: int) -> int:
    """What the loss of a micro-batch holds for each label of each text, and a cosine head's directions, float32 too:
    normalised, and their gradient.
    """
    kind = recipe.classify.head
    return recipe.train.batch_size * labels * LABEL_LOGITS_BYTES[kind] + (8 * head if kind == "cosine" else 0)


def reset_peak() -> None:
    """Start measuring the peak anew, where the system allows it (Linux, CUDA)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    reset_peak_resident()


def peak_memory_bytes() -> int:
    """Highest memory since `reset_peak`: resident bytes of this process, or on CUDA the device's allocated bytes."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return peak_resident_bytes()
