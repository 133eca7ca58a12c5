"""The torch model of a request (see child.py), on a device where memory allows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.model import base
from edgetune.model.device import compute_dtype
from edgetune.model.inference import Place, find_place
from edgetune.model.memory import limit_gpu_memory
from edgetune.recipe import BudgetTable, ModelTable


def load_model(request: Mapping[str, Any]) -> tuple[Any, Place]:
    """The merged model, or the base that an adapter goes on; and where it was put.

    The request's "budget", a [budget] table, holds for this process from now on; "taken_bytes" are its asker's. Without
    them: what is there. Raises ModelError.
    """
    budget, path = BudgetTable(**request.get("budget", {})), Path(request["path"])
    limit_gpu_memory(budget.gpu_memory)
    beside = sum(file.stat().st_size for file in path.glob("adapter*.safetensors"))
    place = find_place(
        ModelTable(**request["model"]),
        budget,
        beside_bytes=beside,
        others_bytes=request.get("taken_bytes", 0),
        name=str(path),
    )
    if request["kind"] != "merged":
        return base.load_base(place.table, device=place.device), place
    dtype = compute_dtype(place.table.compute_dtype, place.device)
    return base.load_merged(Path(place.table.base), dtype=dtype, device=place.device), place
