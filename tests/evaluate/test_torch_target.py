"""Where the torch model of a request is put: edgetune/evaluate/torch_target.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edgetune.evaluate import child, evaluate, torch_target
from edgetune.evaluate.target import Loaded, Target
from edgetune.model import inference
from edgetune.recipe import BudgetTable, ModelTable


@pytest.fixture
def small_gpu(monkeypatch):
    """A GPU without room for any model; the limits that were set for it."""
    limits = []
    monkeypatch.setattr(inference, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(inference, "free_bytes", lambda _, on, *__: 0 if on.type == "cuda" else 1 << 40)
    monkeypatch.setattr(torch_target, "limit_gpu_memory", limits.append)
    return limits


@pytest.mark.parametrize("kind", ["base", "merged"])
def test_a_model_without_room_on_the_gpu_is_put_on_the_cpu_and_the_gpus_limit_holds(kind, tiny_base, small_gpu):
    table = ModelTable(base=str(tiny_base), quantization="none", compute_dtype="bfloat16")
    request = {"kind": kind, "path": str(tiny_base), "model": dataclasses.asdict(table)}
    model, place = torch_target.load_model({**request, "budget": {"gpu_memory": "4 GiB"}, "taken_bytes": 1})
    assert model.device == place.device == torch.device("cpu")
    assert f"{tiny_base} is put on the CPU, which is slower" in place.note
    assert small_gpu == ["4 GiB"]


def test_the_measuring_process_is_told_the_budget_and_what_is_taken(tiny_base, eval_file, tmp_path, monkeypatch):
    asked = []

    def ask(_, request, **__):
        asked.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "ask", ask)
    target, budget = Target("base", "base", tiny_base, ModelTable(str(tiny_base))), BudgetTable(gpu_memory="4 GiB")
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(target, eval_file, tmp_path, budget=budget)
    assert BudgetTable(**asked[0]["budget"]) == budget
    assert asked[0]["taken_bytes"] > 0


def test_the_measuring_process_says_where_the_model_is(monkeypatch):
    class Told(Exception):
        """Ends the measuring after what is told."""

    def end():
        raise Told

    loaded = Loaded(end, lambda _: ((), ()), lambda: None, note="x is put on the CPU")
    monkeypatch.setattr(child, "TASKS", {"any": type("Task", (), {"load": staticmethod(lambda _: loaded)})})
    events = []
    with pytest.raises(Told):
        child.measure({"task": "any"}, events.append)
    assert events == [{"stage": "evaluate", "message": "x is put on the CPU"}]
