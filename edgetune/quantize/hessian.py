"""The Hessian of each layer: what it is given, summed up; of any modules, and of a decoder's on the user's rows.

Of the squared error of a product W x over inputs x it is the sum of x x^T, times 2, which is left out here: all that is
made of it (gptq.py, awq.py) is the same for any multiple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgetune.data.prepare import Prepared
from edgetune.data.tokens import Tokens
from edgetune.model.lazy import CheckpointTensors, lazy_model
from edgetune.model.weights import find_tensors
from edgetune.recipe import Recipe
from edgetune.runtime.batches import by_length, padded

BATCH_ROWS = 8
"""Rows run at a time for calibration."""


@dataclass(frozen=True)
class Rows:
    """The user's rows as training saw them."""

    prepared: Prepared
    pad_id: int


def layer_hessians(merged: Path, names: Iterable[str], recipe: Recipe, rows: Rows) -> Iterator[tuple[str, Tensor]]:
    """For each of the matrices (tensors of the merged folder) its name and the Hessian (K, K) of its inputs.

    The model runs over [export] calibration_rows of the train rows; memory holds one layer of it and some Hessians.
    """
    model = lazy_model(merged, CheckpointTensors(find_tensors(merged)))
    linears = {name: model.get_submodule(name.removesuffix(".weight")) for name in names}

    def run() -> Iterator[Tensor]:
        for ids, mask in _batches(rows.prepared.train, recipe.export.calibration_rows, seed=recipe.train.seed):
            yield mask
            with torch.no_grad():
                model.model(input_ids=ids, use_cache=False)

    return input_hessians(linears, run)


def _batches(tokens: Tokens, count: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids int64 and mask bool, (B, T) each, of so many rows drawn from all, filled up on the right."""
    drawn = np.random.default_rng(seed).permutation(len(tokens))[:count]
    for places in by_length(tokens.lengths[drawn], most_rows=BATCH_ROWS):
        ids, mask = padded([tokens[int(index)].input_ids for index in drawn[places]])
        yield torch.from_numpy(ids), torch.from_numpy(mask).bool()


HESSIAN_BYTES = 1 << 29
"""Hessians held at once; a model with more is run several times."""


def input_hessians(
    modules: Mapping[str, nn.Module], run: Callable[[], Iterator[Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Name and Hessian (K, K) float32 of each linear layer's inputs while `run` runs the model.

    `run` runs the model batch by batch and, before each, yields which of the inputs count: bool (B, T), the rows of a
    layer's input (B, T, K). It is called once for each part of the modules whose Hessians fit HESSIAN_BYTES.
    """
    for part in _parts(modules):
        hessians: dict[str, Tensor] = {}
        counted: list[Tensor] = []
        with ExitStack() as hooks:
            for name, module in part.items():
                hook = module.register_forward_pre_hook(partial(_add, name, hessians, counted))
                hooks.callback(hook.remove)
            for mask in run():
                counted[:] = [mask]
        for name in list(hessians):
            yield name, hessians.pop(name)


def _add(name: str, hessians: dict[str, Tensor], counted: list[Tensor], _: nn.Module, inputs: tuple[Any, ...]) -> None:
    """A forward hook: add the inputs that count to the Hessian of a layer."""
    states = inputs[0].detach()
    if states.shape[:-1] == counted[0].shape:  # a layer may see other things than tokens, such as positions
        states = states[counted[0]]
    states = states.reshape(-1, states.shape[-1]).float()
    if name not in hessians:
        hessians[name] = states.new_zeros(states.shape[-1], states.shape[-1])
    hessians[name].addmm_(states.T, states)


def _parts(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, nn.Module]]:
    """The modules in their order, in parts whose Hessians are at most HESSIAN_BYTES."""
    part: dict[str, nn.Module] = {}
    size = 0
    for name, module in modules.items():
        needed = 4 * int(module.weight.shape[1]) ** 2
        if part and size + needed > HESSIAN_BYTES:
            yield part
            part, size = {}, 0
        part[name] = module
        size += needed
    if part:
        yield part
