"""Memory: what a training will need at its peak, from config.json alone, and the measured peak of this process.

Sources: QLoRA, arXiv:2305.14314, section 3 and appendix G, for the 4-bit base; the tensors are those that our own loop
keeps (step.py, train/head_loss.py).
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch
from torch import nn

from edgetune.errors import RecipeError
from edgetune.launch import launched
from edgetune.model.base import base_folder, empty_model
from edgetune.model.device import compute_dtype, device
from edgetune.model.embedding import PART_TOKENS, end_shapes, has_output_head, held_bytes
from edgetune.model.heap import give_back_freed
from edgetune.model.machine import machine_bytes
from edgetune.model.nf4 import BLOCK_SIZE, quantized_linears
from edgetune.model.step import Step, is_target, weight_of
from edgetune.model.task import TASKS
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
CHUNK_LOGITS_BYTES, LEAST_CHUNK, MOST_CHUNK = 64 * 1024**2, 32, 4096
"""Of the float32 logits that exist at one time where the loss is fused, and the positions in such a chunk."""
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw": 8, "paged_adamw_8bit": 2}
"""Optimizer state of one adapter weight."""


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

    `trained_share` of the tokens have a loss; samples have `sample_tokens` tokens (default: data.max_seq_len); the
    task's own head has so many `labels`. Raises ModelError.
    """
    table, kind, task = recipe.model, on or device().type, TASKS[recipe.model.task]
    path = base_folder(table)
    model = empty_model(path, trust_remote_code=table.trust_remote_code)
    # A GPU that is not there is taken for one that multiplies bfloat16.
    is_here = kind == device().type or table.compute_dtype != "auto"
    item = compute_dtype(table.compute_dtype, device()).itemsize if is_here else 2
    linears, ends = quantized_linears(model), end_shapes(model)
    in_linears = sum(weight_of(module).numel() for module in linears.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    is_nf4 = table.quantization == "nf4"
    adapter = adapter_parameters(linears, recipe.lora)
    config = model.config.get_text_config()
    embeddings = sum(rows * width for rows, width in ends)
    how = table.embedding_quantization
    head = task.head_parameters(recipe, labels, config.hidden_size)
    trained = adapter + head + (embeddings if recipe.lora.train_embeddings else 0)
    names = tuple(name for name, _ in model.named_modules())
    is_decoder = has_output_head(model)
    step = Step(recipe, config, linears, item, kind, sample_tokens or recipe.data.max_seq_len, is_decoder, names)
    logits = task.head_bytes(recipe, labels, head) + (logit_bytes(step, trained_share) if is_decoder else 0)
    returned = max(weight_of(module).numel() for module in linears.values()) * item * is_nf4
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
    shapes = [weight_of(module).shape for name, module in linears.items() if is_target(name, lora.target_modules)]
    return sum(lora.r * (rows + columns) + rows * lora.use_dora for rows, columns in shapes)


def logit_bytes(step: Step, trained_share: float) -> int:
    """States of the trained positions and their gradient; fused, logits of a chunk in the type of computation and
    in float32, else of all: log-probabilities and two gradients in float32. Of a quantised head a part is there,
    dequantised; fused, with the logits of that part alone and a gradient in float32.
    """
    recipe, item = step.recipe, step.item
    vocabulary, hidden = step.config.vocab_size, step.config.hidden_size
    trained = step.tokens * (1.0 if recipe.data.loss_on == "all" else trained_share)
    states = 2 * trained * hidden * item
    cast = item if item < 4 else 0
    is_plain = recipe.model.embedding_quantization == "none"
    tokens = min(vocabulary, PART_TOKENS)
    part = 0 if is_plain else tokens * hidden * item
    if not recipe.train.fused_loss:
        return round(states + part + trained * vocabulary * 12)
    if is_plain:
        chunk = max(LEAST_CHUNK, min(MOST_CHUNK, CHUNK_LOGITS_BYTES // (4 * vocabulary)))
        return round(states + min(trained, chunk) * vocabulary * (4 + cast))
    return round(states + part + min(trained, MOST_CHUNK) * (tokens * (4 + cast) + hidden * 4))


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
