"""Steps of Unsloth as its manual shows them, for benchmarks.gpu: python -m benchmarks.unsloth_steps '{"folder": ...}'

The last line printed is JSON: tokens a second, losses and peak. The base is a folder with weights in bfloat16.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def steps(
    folder: str, *, batch: int, tokens: int, rank: int, alpha: float, checkpointing: bool, steps: int
) -> dict[str, Any]:
    """Train so many steps on a batch of random tokens, all of which count."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_RETURN_LOGITS": "0"}
    from unsloth import FastLanguageModel  # isort: skip  it wants to be imported before torch and transformers
    import torch

    import edgetune

    for name in ("tokenizer.json", "tokenizer_config.json"):  # it will not load a base without any tokenizer
        shutil.copy(Path(edgetune.__file__).parent / "assets" / "nano" / name, folder)
    model, _ = FastLanguageModel.from_pretrained(folder, max_seq_length=tokens, load_in_4bit=True, dtype=torch.bfloat16)
    model = FastLanguageModel.get_peft_model(
        model,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0,
        bias="none",
        target_modules=list(LINEARS),
        use_gradient_checkpointing="unsloth" if checkpointing else False,
    )
    model.train()
    ids = torch.randint(10, model.config.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0)).cuda()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    times, losses = [], []
    for _ in range(steps):
        start_s = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        times.append(time.perf_counter() - start_s)
    return {
        "tokens_per_s": batch * tokens / statistics.median(times[2:]),
        "losses": losses,
        "peak_mib": torch.cuda.max_memory_allocated() / 1024**2,
        "reserved_mib": torch.cuda.max_memory_reserved() / 1024**2,
    }


if __name__ == "__main__":
    print(json.dumps(steps(**json.loads(sys.argv[1]))))
