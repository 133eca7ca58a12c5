"""How long a training will take on this machine: operations a token, from config.json, over a measured rate.

A token passes every linear forwards and its gradient backwards, 2 operations a weight each (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1, without the weights' own gradients: the base is frozen).
"""

from __future__ import annotations

import torch

from edgetune.model.base import base_folder, empty_model
from edgetune.model.device import compute_dtype, device
from edgetune.model.embedding import has_output_head
from edgetune.model.machine import multiply_flops_per_s
from edgetune.model.memory import adapter_parameters
from edgetune.model.nf4 import quantized_linears
from edgetune.recipe import Recipe

EFFICIENCY = 0.5
"""Of the rate of large products, what a step reaches with all else that it does."""


def training_tokens_per_s(recipe: Recipe, *, trained_share: float, sample_tokens: int) -> float:
    """Tokens a second that this machine will train on, measured with products of its own for a third of a second.

    `trained_share` of the tokens have a loss; samples have `sample_tokens` tokens. Raises ModelError.
    """
    where = device()
    rate = multiply_flops_per_s(compute_dtype(recipe.model.compute_dtype, where), where)
    return rate * EFFICIENCY / flops_per_token(recipe, trained_share=trained_share, sample_tokens=sample_tokens)


def flops_per_token(recipe: Recipe, *, trained_share: float, sample_tokens: int) -> float:
    """Floating-point operations of a training step for each token read. Raises ModelError."""
    table = recipe.model
    path = base_folder(table)
    model = empty_model(path, trust_remote_code=table.trust_remote_code)
    config, linears = model.config.get_text_config(), quantized_linears(model)
    weights = sum(module.weight.numel() for module in linears.values() if isinstance(module.weight, torch.Tensor))
    adapter = adapter_parameters(linears, recipe.lora)
    passes = 3 if recipe.gradient_checkpointing else 2  # a layer forwards, again, and backwards
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = config.num_hidden_layers * 2 * width * sample_tokens
    layers = 2 * passes * weights + 2 * (passes + 1) * adapter + (passes + 1) * attention
    head = 4.0 * config.vocab_size * config.hidden_size if has_output_head(model) else 0.0
    return layers + head * (1.0 if recipe.data.loss_on == "all" else trained_share)
