"""The loss fused with the output head against plain logits and cross entropy: python -m benchmarks.fused_loss

Forward and backward for 1,024 positions of 576 numbers under a frozen head; each measurement in a process of its own,
fused and plain in turn. Memory is what resident memory grows by, beyond states and head; seconds are those of all
threads on a core, which other work on the machine disturbs least, threads that wait being asleep.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import in_child, load_at_start, spread
from edgetune.files import write_json
from edgetune.model.memory import peak_memory_bytes, reset_peak
from edgetune.process_memory import resident_bytes
from edgetune.provenance import provenance
from edgetune.train.head_loss import fused_cross_entropy

POSITIONS, HIDDEN = 1024, 576
VOCABULARIES = (49_152, 131_072)
ASLEEP = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
"""How threads wait, so that waiting takes no time of a core."""
TIMED = 3
WAYS = ("fused", "plain")


def step(way: str, states: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Summed loss of states (n, hidden); their gradient is left in `states.grad`."""
    states.grad = None
    if way == "fused":
        loss = fused_cross_entropy(states, head, targets)
    else:
        loss = F.cross_entropy(F.linear(states, head).float(), targets, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def measure(way: str, vocabulary: int) -> dict[str, Any]:
    """Loss, norm of the gradient, MiB and CPU seconds of one way."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(POSITIONS, HIDDEN, generator=generator).requires_grad_()
    head = torch.randn(vocabulary, HIDDEN, generator=generator) / HIDDEN**0.5
    targets = torch.randint(vocabulary, (POSITIONS,), generator=generator)
    step(way, states[:64].detach().requires_grad_(), head, targets[:64])  # libraries and threads are there
    before = resident_bytes()
    reset_peak()
    seconds = []
    for _ in range(TIMED):
        start_s = time.process_time()
        loss = step(way, states, head, targets)
        seconds.append(time.process_time() - start_s)
    assert states.grad is not None
    return {
        "loss": float(loss),
        "gradient_norm": float(states.grad.norm()),
        "mib": (peak_memory_bytes() - before) / 1024**2,
        "seconds": min(seconds),
    }


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "fused_loss.json",
    show_default=True,
)
@click.option("--rounds", default=3, show_default=True, help="Measurements of each way, in turn.")
def main(out: Path, rounds: int) -> None:
    """Measure both ways for both vocabularies and write the JSON."""
    load, rows = load_at_start(), []
    for vocabulary in VOCABULARIES:
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(in_child("benchmarks.fused_loss", way, vocabulary, environment=ASLEEP))
        fused, plain = found["fused"], found["plain"]
        pairs = list(zip(fused, plain, strict=True))
        rows.append(
            {
                "vocabulary": vocabulary,
                **{f"{way}_mib": spread([one["mib"] for one in found[way]]) for way in WAYS},
                **{f"{way}_s": spread([one["seconds"] for one in found[way]]) for way in WAYS},
                "times_less_memory": spread([two["mib"] / one["mib"] for one, two in pairs]),
                "times_faster": spread([two["seconds"] / one["seconds"] for one, two in pairs]),
                "loss_difference": max(abs(one["loss"] / two["loss"] - 1) for one, two in pairs),
                "gradient_difference": max(abs(one["gradient_norm"] / two["gradient_norm"] - 1) for one, two in pairs),
            }
        )
        click.echo(json.dumps(rows[-1]))
    facts = {"positions": POSITIONS, "hidden": HIDDEN, "rounds": rounds, "load": load}
    write_json(out, {**facts, "rows": rows, "provenance": provenance()})


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WAYS:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
