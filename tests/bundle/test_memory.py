"""Merging and exporting hold a layer at a time, never the whole model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SIZES = {"warm": (2, 64, 128), "large": (16, 512, 2048)}
"""Layers, hidden and inner width: a model that makes the process load its libraries, and the one measured."""

MEASURE = """
import json
import sys
from pathlib import Path

from edgetune.bundle.generation import build_bundle
from edgetune.lora.merge import merge
from edgetune.process_memory import peak_resident_bytes, reset_peak_resident, resident_bytes
from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe

table = ExportTable(calibration_rows=0, repair_steps=0)
found = {}
for size in ("warm", "large"):
    base = Path(sys.argv[1]) / size
    before, _ = resident_bytes(), reset_peak_resident()
    merge(base / "adapter", base, base / "merged", merge_base="trained")
    found["merge"], before, _ = peak_resident_bytes() - before, resident_bytes(), reset_peak_resident()
    (base / "bundle").mkdir()
    recipe = Recipe(ModelTable(str(base)), DataTable("x"), export=table)
    build_bundle(base / "merged", base / "bundle", recipe, is_chat=True)
    found["export"] = peak_resident_bytes() - before
print(json.dumps(found))
"""


def make_base(folder: Path, tokenizer: Path, layers: int, hidden: int, inner: int) -> int:
    """A random Llama in bfloat16 with an adapter beside it; bytes of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from edgetune.lora.adapter import attach, save
    from edgetune.recipe import LoraTable, ModelTable

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        head_dim=32,
        tie_word_embeddings=True,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)
    size = sum(parameter.numel() * 2 for parameter in model.parameters())
    save(attach(model, LoraTable()), folder / "adapter", ModelTable(str(folder)))
    return size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is measured anew for each stage")
def test_neither_merging_nor_exporting_takes_the_memory_of_the_model(tiny_base: Path, tmp_path: Path) -> None:
    sizes = {name: make_base(tmp_path / name, tiny_base, *shape) for name, shape in SIZES.items()}
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["merge"] < sizes["large"]
    assert found["export"] < sizes["large"]
