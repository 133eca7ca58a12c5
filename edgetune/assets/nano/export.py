"""From a checkpoint to the files of `edgetune:nano`, with the numbers its card quotes. Last step of `pretrain`."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from edgetune.assets.nano.card import update_card
from edgetune.assets.nano.tokenizer import SPECIAL_TOKENS, VOCAB_SIZE
from edgetune.model.device import device

CONTEXT = 512
ADD_K = 0.02
_ASSISTANT, _ROLE_TOKENS = 4, 6  # ids 0 to 5 begin or end a turn


def make_config() -> LlamaConfig:
    """The architecture: a 6-layer Llama with tied embeddings, 6.0 M parameters."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=0,
        eos_token_id=5,
        pad_token_id=1,
    )


def export(work: Path, out: Path) -> dict:
    """Write config, bf16 weights, tokenizer and training.json; every file is replaced atomically.

    The card in `out`, if there is one, gets the numbers too; they are returned.
    """
    state = torch.load(work / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = LlamaForCausalLM(make_config())
    model.load_state_dict(state["model"])
    model = model.to(torch.bfloat16)
    partial = work / "export"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(work / "tokenizer", partial)
    model.config.dtype = torch.bfloat16
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(partial)
    GenerationConfig(bos_token_id=0, eos_token_id=[5, 0], pad_token_id=1).save_pretrained(partial)
    tensors = {n: p.detach().contiguous() for n, p in model.state_dict().items() if n != "lm_head.weight"}
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    numbers = measure(model.float().to(device()), state, work)
    (partial / "training.json").write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(partial.iterdir()):
        shutil.copyfile(path, out / (path.name + ".part"))
        os.replace(out / (path.name + ".part"), out / path.name)
    if (out / "README.md").exists():
        update_card(out / "README.md", numbers)
    return numbers


def copy_tokenizer(release: Path, folder: Path) -> None:
    """Copy the tokenizer's files out of an exported folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in release.glob("tokenizer*.json"):
        shutil.copyfile(path, folder / path.name)


def measure(model: LlamaForCausalLM, state: dict, work: Path) -> dict:
    """The facts of a training run: its size and time, the held-out losses of the model and of count-based baselines."""
    arrays = np.load(work / "evaluation.npz")
    held_out, train_ids = arrays["natural"], arrays["train"]
    bits_per_nat_byte = (len(held_out) - 1) / int(arrays["natural_bytes"]) / math.log(2)
    results = evaluate(model, work)
    baselines = {"unigram": unigram_loss(train_ids, held_out), "bigram": bigram_loss(train_ids, held_out)}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": state["step"],
        "tokens": state["tokens"],
        "synthetic_share": round(state["synthetic_share"], 4),
        "natural_tokens": round(state["tokens"] * (1 - state["synthetic_share"])),
        "train_wall_s": round(state["elapsed_s"]),
        "decay_started_s": None if state["decay_from_s"] is None else round(state["decay_from_s"]),
        "decay_length_s": None if state["decay_from_s"] is None else round(state["decay_s"]),
        "natural_train_tokens": len(train_ids),
        "held_out_tokens": len(held_out),
        "held_out_bytes": int(arrays["natural_bytes"]),
        **{k: round(v, 4) for k, v in results.items()},
        "val_natural_bits_per_byte": round(results["val_natural_nats_per_token"] * bits_per_nat_byte, 4),
        **{f"{name}_nats_per_token": round(loss, 4) for name, loss in baselines.items()},
        **{f"{name}_bits_per_byte": round(loss * bits_per_nat_byte, 4) for name, loss in baselines.items()},
        "weights_dtype": "bfloat16",
        "hardware": state["hardware"],
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


@torch.inference_mode()
def evaluate(model: LlamaForCausalLM, work: Path, max_rows: int | None = None) -> dict[str, float]:
    """Held-out loss in nats a token on natural text and on task answers, and the share of answers right in full.

    An answer whose every token is the most likely one after the true prefix is the one greedy decoding would give.
    """
    arrays = np.load(work / "evaluation.npz")
    losses = [_losses(model, row)[0] for row in _rows(arrays["natural"].astype(np.int64), max_rows)]
    answer_losses, right, answers = [], 0, 0
    for ids in arrays["synthetic"][:max_rows]:
        row = torch.from_numpy(ids.astype(np.int64))
        loss, hits = _losses(model, row)
        inside = is_answer(row[None])[0]
        answer_losses.append(loss[inside])
        for a, b in _runs(inside.tolist()):
            answers += 1
            right += bool(hits[a:b].all())
    return {
        "val_natural_nats_per_token": torch.cat(losses).mean().item(),
        "val_answer_nats_per_token": torch.cat(answer_losses).mean().item(),
        "val_answers_exact": right / max(answers, 1),
    }


def is_answer(rows: torch.Tensor) -> torch.Tensor:
    """Which targets rows[:, 1:] are part of an answer, its end token included: (n, length + 1) -> bool (n, length)."""
    inputs = rows[:, :-1]
    position = torch.arange(inputs.shape[1]).expand_as(inputs)
    last_role = torch.where(inputs < _ROLE_TOKENS, position, 0).cummax(1).values
    return inputs.gather(1, last_role) == _ASSISTANT


def unigram_loss(train: np.ndarray, held_out: np.ndarray) -> float:
    """Held-out nats a token of add-k smoothed token frequencies."""
    counts = np.bincount(train, minlength=VOCAB_SIZE) + ADD_K
    return float(-np.log(counts / counts.sum())[held_out[1:]].mean())


def bigram_loss(train: np.ndarray, held_out: np.ndarray) -> float:
    """Held-out nats a token of add-k smoothed pair frequencies."""
    pairs = train[:-1].astype(np.int64) * VOCAB_SIZE + train[1:]
    counts = np.bincount(pairs, minlength=VOCAB_SIZE**2).reshape(VOCAB_SIZE, VOCAB_SIZE)
    before, after = held_out[:-1], held_out[1:]
    return float(-np.log((counts[before, after] + ADD_K) / (counts.sum(1)[before] + ADD_K * VOCAB_SIZE)).mean())


def strip_special(text: str) -> str:
    """The text with its role and separator tokens turned into newlines."""
    return re.sub("|".join(map(re.escape, SPECIAL_TOKENS)), "\n", text)


def _rows(ids: np.ndarray, max_rows: int | None) -> list[torch.Tensor]:
    return [torch.from_numpy(ids[i : i + CONTEXT + 1]) for i in range(0, len(ids) - 1, CONTEXT)][:max_rows]


def _losses(model: LlamaForCausalLM, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(input_ids=row[None, :-1].to(model.device), use_cache=False).logits[0].float().cpu()
    return F.cross_entropy(logits, row[1:], reduction="none"), logits.argmax(-1) == row[1:]


def _runs(inside: list[bool]) -> list[tuple[int, int]]:
    # Begin and end of each run of True that ends before the row does: an answer cut off by the row is no answer.
    edges = [i for i in range(1, len(inside)) if inside[i] != inside[i - 1]]
    starts = [i for i in ([0] if inside[0] else []) + edges if inside[i]]
    return list(zip(starts, [i for i in edges if not inside[i]], strict=False))
