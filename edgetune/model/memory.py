"""Memory: what a training will need at its peak, from config.json alone, and the measured peak of this process.

Sources: QLoRA, arXiv:2305.14314, section 3 and appendix G, for the 4-bit base; the tensors are those that our own loop
keeps (train/fused.py, train/segments.py, train/head_loss.py).
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetune.errors import RecipeError
from edgetune.launch import launched
from edgetune.model.base import empty_model, resolve_base
from edgetune.model.device import compute_dtype, device
from edgetune.model.embedding import PART_TOKENS, held_bytes
from edgetune.model.heap import give_back_freed
from edgetune.model.machine import machine_bytes
from edgetune.model.nf4 import BLOCK_SIZE, quantized_linears
from edgetune.process_memory import peak_resident_bytes, reset_peak_resident
from edgetune.recipe import LoraTable, Recipe, parse_size

LIBRARY_BYTES = {"cpu": 520 * 1024**2, "cuda": 512 * 1024**2}
"""Resident memory of Python with torch, transformers, peft and datasets; on a GPU what CUDA takes for itself, which
torch's own counters leave out."""
WORKSPACE_BYTES = {"cpu": 0, "cuda": 64 * 1024**2}
"""What cuBLAS and cuBLASLt take from torch's allocator on a GPU (Hopper; less on older ones)."""
SLACK = {"cpu": 0.35, "cuda": 0.0}
"""What the C library holds beyond tensors that come and go, as a share of them: freed blocks it has not given back,
unless they are as large as logits, or gradients are checkpointed, where it gives them back at once (model/heap.py).
torch's counters on a GPU leave such blocks out; see FRAGMENTATION."""
FRAGMENTATION = 0.08
"""The share of a GPU's memory that a recipe made to fit leaves free: for blocks of the wrong size, which its allocator
holds and cannot use. Where there is room it holds 1 to 20 % more than is used; where not, it gives back what it can."""
MACHINE_SHARE = 0.8
"""Of a machine's memory, what a training on its CPU may take where no budget is given."""
LABEL_LOGITS_BYTES = {"cosine": 5 * 4, "linear": 4 * 4}
"""Of one label of a text in a classifier's step: logits, scaled ones, log-probabilities and gradients, float32."""
CHUNK_LOGITS_BYTES, LEAST_CHUNK, MOST_CHUNK = 64 * 1024**2, 32, 4096
"""Of the float32 logits that exist at one time where the loss is fused, and the positions in such a chunk."""
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw": 8, "paged_adamw_8bit": 2}
"""Optimizer state of one adapter weight."""
PLAIN_ATTENTION_LENGTH = 256
"""Samples up to this length have their attention's shares kept on a CPU; longer ones, and a GPU, keep none."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by part at the peak of training, and what is counted. `parts` is in the order of the table."""

    parts: dict[str, int]
    """What is there at the peak; it adds up to `peak_bytes`."""
    other: dict[str, int]
    """What comes and goes at other times, and is smaller."""
    peak_bytes: int
    trainable_parameters: int
    base_parameters: int


def estimate(
    recipe: Recipe,
    *,
    on: str | None = None,
    trained_share: float = 1.0,
    labels: int = 0,
    sample_tokens: int | None = None,
) -> Estimate:
    """What training this recipe needs at its peak on a "cpu" or "cuda" device (default: this machine's), from
    config.json alone.

    `trained_share` of the tokens have a loss; samples have `sample_tokens` tokens (default: data.max_seq_len); a
    classifier's head has so many `labels`. Raises ModelError.
    """
    table, kind = recipe.model, on or device().type
    path = resolve_base(table.base, table.revision, trust_remote_code=table.trust_remote_code)
    model = empty_model(path, trust_remote_code=table.trust_remote_code)
    # A GPU that is not there is taken for one that multiplies bfloat16.
    is_here = kind == device().type or table.compute_dtype != "auto"
    item = compute_dtype(table.compute_dtype, device()).itemsize if is_here else 2
    linears = quantized_linears(model)
    in_linears = sum(_weight(module).numel() for module in linears.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    is_nf4 = table.quantization == "nf4"
    adapter = adapter_parameters(linears, recipe.lora)
    config = model.config.get_text_config()
    ends = _embedding_shapes(model)
    embeddings = sum(rows * width for rows, width in ends)
    how = table.embedding_quantization
    head = head_parameters(recipe, labels, config.hidden_size) if recipe.is_classifier else 0
    trained = adapter + head + (embeddings if recipe.lora.train_embeddings else 0)
    names = tuple(name for name, _ in model.named_modules())
    step = _Step(recipe, config, linears, item, kind, sample_tokens or recipe.data.max_seq_len, names)
    logits = _label_bytes(recipe, labels, head) if recipe.is_classifier else step.logit_bytes(trained_share)
    returned = max(_weight(module).numel() for module in linears.values()) * item * is_nf4
    phases = {"largest block": step.block_bytes() + returned, "logits": logits}
    peak_phase = max(phases, key=lambda name: phases[name])
    saved = step.saved_bytes()
    parts = {
        "Python and libraries" if kind == "cpu" else "CUDA context": LIBRARY_BYTES.get(kind, 0),
        "matrix workspace": WORKSPACE_BYTES.get(kind, 0),
        "base, linears": round(in_linears * nf4_bytes(table.double_quantization)) if is_nf4 else in_linears * item,
        "base, embeddings": embeddings * item if how == "none" else sum(held_bytes(how, *shape) for shape in ends),
        "base, the rest": (total - in_linears - embeddings) * item,
        "adapter": adapter * 4,
        "head": head * 4,
        "embedding, trained": (trained - adapter - head) * 4,
        "gradients": trained * 4,
        "optimizer": trained * STATE_BYTES[recipe.train.optimizer],
        "start, for restarts": trained * 4 if kind == "cpu" and recipe.train.divergence_restarts else 0,
        "saved activations": saved,
        peak_phase: phases.pop(peak_phase),
    }
    slack = 0.0 if recipe.gradient_checkpointing else SLACK.get(kind, 0.0)
    in_heap = saved + (parts[peak_phase] if peak_phase == "largest block" else 0)
    parts["freed and not given back"] = round(in_heap * slack)
    return Estimate(parts, phases, sum(parts.values()), trained, total)


def nf4_bytes(double_quantization: bool) -> float:
    """Bytes of one weight in NF4 with its scales: 0.516 with double quantisation, 0.5625 without."""
    scale = 1 + 4 / 256 if double_quantization else 4
    return 0.5 + scale / BLOCK_SIZE


def adapter_parameters(linears: dict[str, nn.Module], lora: LoraTable) -> int:
    """Weights of a new adapter on the targeted linears: r * (in + out) each, and out more with DoRA."""
    shapes = [_weight(module).shape for name, module in linears.items() if is_target(name, lora.target_modules)]
    return sum(lora.r * (rows + columns) + rows * lora.use_dora for rows, columns in shapes)


def _embedding_shapes(model: Any) -> list[tuple[int, int]]:
    """Shapes of embedding and output head, that of tied ones once."""
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    return list({id(end.weight): tuple(end.weight.shape) for end in ends}.values())


def head_parameters(recipe: Recipe, labels: int, hidden: int) -> int:
    """Weights of a classifier's head: a direction for each label, and a bias where it is linear."""
    return labels * (hidden + (recipe.classify.head == "linear"))


def is_target(name: str, targets: str | Iterable[str]) -> bool:
    """PEFT's rule: a module's path, or its end after a dot."""
    if isinstance(targets, str):
        return True
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


@dataclass(frozen=True)
class _Step:
    """One micro-batch of packed rows: what its tensors are. Widths in elements, `item` bytes each."""

    recipe: Recipe
    config: Any
    linears: dict[str, nn.Module]
    item: int
    kind: str
    sample_tokens: int
    names: tuple[str, ...]
    """Of all modules."""

    @property
    def tokens(self) -> int:
        return self.recipe.batch_size * self.recipe.data.max_seq_len

    @property
    def heads_width(self) -> int:
        heads = self.config.num_attention_heads
        return heads * (getattr(self.config, "head_dim", None) or self.config.hidden_size // heads)

    @property
    def attention_width(self) -> float:
        """Of what attention keeps, as `layer_bytes` says."""
        is_capped = getattr(self.config, "attn_logit_softcapping", None) is not None
        if self.kind == "cpu" or self.item > 2 or is_capped or self.recipe.is_classifier:
            return 5 * self.heads_width
        heads = self.config.num_attention_heads
        return 2 * self.heads_width * (1 + (getattr(self.config, "num_key_value_heads", None) or heads) / heads)

    @property
    def normed_width(self) -> int:
        """Of queries and keys, where each head's are normed (Qwen3, Gemma 3)."""
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
        targets = [_weight(m) for name, m in self.linears.items() if is_target(name, lora.target_modules)]
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

    def logit_bytes(self, trained_share: float) -> int:
        """States of the trained positions and their gradient; fused, logits of a chunk in the type of computation and
        in float32, else of all: log-probabilities and two gradients in float32. Of a quantised head a part is there,
        dequantised; fused, with the logits of that part alone and a gradient in float32.
        """
        vocabulary, hidden = self.config.vocab_size, self.config.hidden_size
        trained = self.tokens * (1.0 if self.recipe.data.loss_on == "all" else trained_share)
        states = 2 * trained * hidden * self.item
        cast = self.item if self.item < 4 else 0
        is_plain = self.recipe.model.embedding_quantization == "none"
        tokens = min(vocabulary, PART_TOKENS)
        part = 0 if is_plain else tokens * hidden * self.item
        if not self.recipe.train.fused_loss:
            return round(states + part + trained * vocabulary * 12)
        if is_plain:
            chunk = max(LEAST_CHUNK, min(MOST_CHUNK, CHUNK_LOGITS_BYTES // (4 * vocabulary)))
            return round(states + min(trained, chunk) * vocabulary * (4 + cast))
        return round(states + part + min(trained, MOST_CHUNK) * (tokens * (4 + cast) + hidden * 4))


def _label_bytes(recipe: Recipe, labels: int, head: int) -> int:
    """What the loss of a micro-batch holds for each label of each text, and a cosine head's directions, float32 too:
    normalised, and their gradient.
    """
    kind = recipe.classify.head
    return recipe.batch_size * labels * LABEL_LOGITS_BYTES[kind] + (8 * head if kind == "cosine" else 0)


def room_bytes(recipe: Recipe, kind: str) -> int:
    """What a training may take on a "cpu" or "cuda" device: [budget] gpu_memory or memory, else what the machine has.

    Of a GPU a FRAGMENTATION of it stays free, of a CPU without a budget a MACHINE_SHARE is taken; processes on one
    machine share its memory, each has a GPU of its own. Raises RecipeError.
    """
    budget = parse_size(recipe.budget.gpu_memory or recipe.budget.memory)
    if kind != "cuda":
        return (budget if budget is not None else round(machine_bytes() * MACHINE_SHARE)) // launched().local_count
    if budget is None and not torch.cuda.is_available():
        raise RecipeError("no GPU is here to take the memory of", cure="set budget.gpu_memory")
    there = budget if budget is not None else int(torch.cuda.get_device_properties(device()).total_memory)
    return round(there * (1 - FRAGMENTATION))


def limit_gpu_memory(size: str | None) -> None:
    """Let this process use so much of its GPU, e.g. "8 GiB", what CUDA takes for itself included; None: all of it.

    A large GPU then runs out of memory where a small one would. Without a GPU nothing happens.
    """
    allowed = parse_size(size, where="budget.gpu_memory")
    if not torch.cuda.is_available():
        return
    own = torch.cuda.current_device()
    there = torch.cuda.get_device_properties(own).total_memory
    share = 1.0 if allowed is None else max(allowed - LIBRARY_BYTES["cuda"], 0) / there
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0), own)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or, in torch's words, on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def give_back_memory() -> None:
    """Return what freed tensors held to the GPU or, where the C library can, to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back_freed()


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
