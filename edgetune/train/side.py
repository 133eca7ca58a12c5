"""One of several adapters that are trained side by side: its parts, its optimizer steps, its record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgetune.files import write_text
from edgetune.lora.adapter import attach
from edgetune.model.lend import lent
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir, claim
from edgetune.train.loop import find_inputs
from edgetune.train.result import TrainResult, eval_rows, write_result
from edgetune.train.setup import Parts, set_up
from edgetune.train.side_linear import lora_layers


@dataclass(frozen=True)
class SideDir(RunDir):
    """The run folder of one adapter; the tokenised rows are shared."""

    shared_cache: Path = Path()

    @property
    def cache(self) -> Path:
        """Tokenised data by content hash, of all adapters."""
        return self.shared_cache


@dataclass
class Side:
    """One adapter under way."""

    name: str
    run_dir: RunDir
    parts: Parts
    layers: Mapping[str, Any]
    """Its LoRA linears by their paths in the base."""
    generator: torch.Generator
    best_loss: float | None = None
    whole_loss: float | None = None
    """On all eval rows, where the others were on some of them and the last step is the best."""
    best_step: int = 0
    best: list[Tensor] = dataclasses.field(default_factory=list)
    train_loss: float = 0.0
    train_tokens: int = 0
    has_diverged: bool = False


def prepare(name: str, recipe: Recipe, folder: Path, base: Any, notify: Progress) -> Side:
    """The parts of one training, made exactly as for one alone, taken off the base again."""
    run_dir = SideDir(folder / name, shared_cache=folder / "cache")
    claim(run_dir, recipe.to_toml())
    with lent(base):
        parts = set_up(recipe, run_dir, find_inputs(recipe, run_dir), notify, base=base)
        layers = dict(lora_layers(parts.model.get_base_model()))
    generator = torch.Generator(device=base.device)
    if base.device.type == "cpu":
        generator.set_state(torch.get_rng_state())
    else:
        generator.manual_seed(recipe.train.seed)
    write_text(run_dir.recipe, parts.recipe.to_toml())
    return Side(name, run_dir, parts, layers, generator)


def make_step(side: Side, step: int, loss: float, trained: int) -> None:
    """One adapter's optimizer step. One whose loss is no number makes no more."""
    parts = side.parts
    side.has_diverged |= not math.isfinite(loss)
    if not side.has_diverged:
        side.train_tokens += trained
        side.train_loss += (loss - side.train_loss) * trained / side.train_tokens
        torch.nn.utils.clip_grad_norm_(parts.trained, parts.recipe.train.max_grad_norm)
        for group in parts.optimizer.param_groups:
            group["lr"] = parts.training.learning_rate(step) * group["share"]
        parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)


def finish(side: Side, base: Any, cost: Mapping[str, Any]) -> TrainResult | None:
    """The adapter and the record of one training; None of one that never had a sound evaluation."""
    parts, run_dir = side.parts, side.run_dir
    if not side.best:
        return None
    with lent(base):
        model = attach(base, parts.recipe.lora)
        kept = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with torch.no_grad():
            for parameter, value in zip(kept, side.best, strict=True):
                parameter.copy_(value)
        parts.task.save(model, run_dir.adapter)
    result = TrainResult(
        steps=parts.steps,
        train_loss=side.train_loss,
        eval_loss=side.best_loss if side.whole_loss is None else side.whole_loss,
        eval_rows=eval_rows(parts, is_whole=side.whole_loss is not None),
        best_step=side.best_step,
        tokens_per_s=cost["tokens"] / max(cost["train_s"], 1e-9),
        learning_rate=parts.learning_rate,
        stopped_early=False,
        batch_size=parts.recipe.batch_size,
        **cost,
    )
    write_result(run_dir, result, find_inputs(parts.recipe, run_dir), seed=parts.recipe.train.seed)
    return result
