"""How much there is to compute in a run's stages, and how fast this machine computes: what durations are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgetune.planning.facts import Facts

EFFICIENCY = 0.5
"""Of the rate of large products, what a pass through the layers reaches with all else that it does."""
PROCESS_S = 6.0
"""Seconds in which a fresh process has torch, transformers and a small model."""
GRAPH_PROCESS_S = 2.0
"""The same of one with onnxruntime alone."""


@dataclass(frozen=True)
class Machine:
    """What this one does in a second."""

    flops: float
    """In the type that the base computes in."""
    float_flops: float
    """In float32."""
    read_bytes: float
    """Of memory."""


@dataclass(frozen=True)
class Work:
    """A run's rows and steps."""

    facts: Facts
    machine: Machine
    train_rows: int
    eval_rows: int
    scored_rows: int
    steps: int
    step_tokens: float
    """Of an optimizer step."""
    train_seconds: float
    """Of all steps."""

    def forward_s(self, tokens: float, *, is_float: bool = False) -> float:
        """Of tokens that pass all layers once, and no head."""
        rate = self.machine.float_flops if is_float else self.machine.flops
        return 2 * tokens * self.facts.in_layers / (EFFICIENCY * rate)

    def head_s(self, tokens: float, *, is_float: bool = False) -> float:
        """Of logits for so many of them."""
        rate = self.machine.float_flops if is_float else self.machine.flops
        return 2 * tokens * self.facts.vocabulary * self.facts.step.config.hidden_size / (EFFICIENCY * rate)

    @property
    def training_evaluations_s(self) -> float:
        """All evaluations between steps, which "auto" keeps to a share of the training."""
        from edgetune.train.eval_share import EVAL_SHARE, FORWARD
        from edgetune.train.setup import EVALUATIONS

        counts, table = self.facts.rows.get("eval", self.facts.rows["train"]), self.facts.recipe.train
        times = EVALUATIONS if table.eval_steps == "auto" else math.ceil(self.steps / int(table.eval_steps))
        a_token = self.train_seconds / max(1.0, self.steps * self.step_tokens)
        whole = FORWARD * a_token * self.eval_rows * self.facts.mean(counts)
        seconds = min(times, self.steps) * whole
        return min(seconds, EVAL_SHARE * self.train_seconds) if table.eval_steps == "auto" else seconds


def look_at_machine(facts: Facts) -> Machine:
    """Measure this machine for a second."""
    import os

    import torch

    from edgetune.model.device import compute_dtype, device
    from edgetune.model.machine import multiply_flops_per_s, read_bandwidth_bytes_per_s

    where = device()
    dtype = compute_dtype(facts.recipe.model.compute_dtype, where)
    flops = multiply_flops_per_s(dtype, where)
    is_same = where.type == "cpu" and dtype == torch.float32
    float_flops = flops if is_same else multiply_flops_per_s(torch.float32, torch.device("cpu"))
    read = read_bandwidth_bytes_per_s(os.cpu_count() or 1, mib_per_thread=64, rounds=3)["best"]
    return Machine(flops, float_flops, read)
