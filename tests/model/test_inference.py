"""Where a model that answers is put, and what its tokens take: edgetune/model/inference.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgetune.model import inference
from edgetune.model.inference import find_place, free_bytes, in_memory, token_bytes
from edgetune.recipe import BudgetTable, ModelTable

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
MIB = 1024**2


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch):
    """A function that makes this a machine with a GPU: what is free on it and on the CPU, in bytes."""

    def make(gpu: int, cpu: int = 1 << 40) -> None:
        monkeypatch.setattr(inference, "device", lambda: GPU)
        monkeypatch.setattr(inference, "free_bytes", lambda _, on, *__: gpu if on.type == "cuda" else cpu)
        monkeypatch.setattr(inference, "compute_dtype", _dtype)

    return make


def _dtype(name: str, on: torch.device) -> torch.dtype:
    """A GPU multiplies bfloat16, this CPU does not."""
    return torch.bfloat16 if name == "bfloat16" or on.type == "cuda" else torch.float32


def test_a_model_goes_on_the_gpu_where_there_is_room_else_on_the_cpu_and_says_so(tiny_base: Path, on_gpu) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    weights = 2 * sum(parameter.numel() for parameter in model.parameters())
    table, least = ModelTable(str(tiny_base), quantization="none"), 2048 * token_bytes(model.config, 2)
    on_gpu(weights + least)
    place = find_place(table, BudgetTable())
    assert (place.device, place.room_bytes, place.note) == (GPU, least, "")
    on_gpu(weights + least - 5 * MIB)
    place = find_place(table, BudgetTable(), name="runs/x/merged")
    assert place.device == CPU
    assert place.table == table
    assert place.note == "runs/x/merged is put on the CPU, which is slower: the GPU lacks 5 MiB"
    on_gpu(weights + least - 1)
    assert find_place(table, BudgetTable()).device == CPU
    assert find_place(ModelTable(str(tiny_base)), BudgetTable()).device == GPU  # the same base in 4 bits
    on_gpu(weights + least)
    assert find_place(table, BudgetTable(), beside_bytes=MIB).device == CPU


def test_a_cpu_without_room_for_its_own_type_holds_the_gpus(tiny_base: Path, on_gpu) -> None:
    table = ModelTable(str(tiny_base), quantization="none")
    on_gpu(0, cpu=0)
    assert find_place(table, BudgetTable()).table.compute_dtype == "bfloat16"
    asked = ModelTable(str(tiny_base), quantization="none", compute_dtype="float32")
    assert find_place(asked, BudgetTable()).table == asked


def test_what_is_free_is_the_less_of_the_budget_and_of_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "resident_bytes", lambda: 100 * MIB)
    budget = BudgetTable(memory="500 MiB", gpu_memory="4 GiB")
    assert free_bytes(budget, CPU, 300 * MIB) == 100 * MIB
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (8 * 1024 * MIB, 0))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 0)
    allowed = round(4096 * MIB * 0.92) - 512 * MIB
    assert free_bytes(budget, GPU) == allowed
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (1000 * MIB, 0))
    assert free_bytes(budget, GPU) == 920 * MIB


def test_a_tokens_keys_and_values_are_those_of_the_live_cache(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    with torch.no_grad():
        cache = model(input_ids=torch.ones(2, 5, dtype=torch.long), use_cache=True).past_key_values
    live = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // 10
    config = model.config
    passing = 4 * (4 * config.hidden_size + 3 * config.intermediate_size)
    assert token_bytes(config, 4) == passing + live + live // config.num_hidden_layers


def test_batches_are_halved_where_memory_runs_out_and_stay_so() -> None:
    sizes = []

    def work(rows):
        sizes.append(len(rows))
        if len(rows) > 3:
            raise MemoryError
        return [-row for row in rows]

    found = list(in_memory([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]], work))
    assert found == [(rows, [-row for row in rows]) for rows in ([0, 1, 2], [3, 4, 5], [6, 7, 8], [9])]
    assert sizes == [6, 3, 3, 3, 1]
    with pytest.raises(MemoryError):
        list(in_memory([[1]], lambda _: (_ for _ in ()).throw(MemoryError())))


def test_a_config_without_head_dim_or_own_key_heads_has_a_width() -> None:
    text = SimpleNamespace(hidden_size=8, num_attention_heads=2, num_hidden_layers=3, intermediate_size=16)
    assert token_bytes(SimpleNamespace(get_text_config=lambda: text), 2) == 2 * (2 * 8 * 4 + 4 * 8 + 3 * 16)
