"""How much slower work becomes beside other processes, by how its threads wait for one another.

    python -m benchmarks.busy

Training steps, repair, answers of a torch model and decoding of a bundle, each on an idle machine and beside one and
two processes that keep a core busy; with the waiting that torch and onnxruntime come with, with ours, and two peers'.
Each measurement is a fresh process; contestants take turns, for several rounds. Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.decode import _bundle, _random_llama
from benchmarks.measure import in_child, load_at_start, spread
from edgetune.files import write_json
from edgetune.provenance import provenance
from edgetune.runtime.bundle import GENAI_CONFIG

AS_IT_COMES = {"KMP_BLOCKTIME": "200"}
"""LLVM's own default, which GNU's OpenMP does not read: with it EdgeTune takes the user to have chosen."""
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
OTHERS = {"passive": PASSIVE, **{f"GOMP_SPINCOUNT={turns}": {"GOMP_SPINCOUNT": turns} for turns in ("1000", "30000")}}
"""Beside ours, on a training step alone."""
INTELS = Path(sys.prefix) / "lib" / "libiomp5.so"
"""Of the package intel-openmp: what torch has on Windows, and nearly what it has on macOS; left out without it."""
BUSY = "while True: pass"
NEIGHBOURS = (0, 1, 2)
PEERS = ("trainer step", "llama.cpp token")
"""Work of other tools: one that does not run on this machine is left out, and the reason kept."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One kind of work, done with one way of waiting."""

    name: str
    work: str
    """What busy_child does."""
    argument: str = "-"
    environment: tuple[tuple[str, str], ...] = ()


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/busy.json"))
def main(rounds: int, out: Path) -> None:
    """Measure and write JSON."""
    load = load_at_start()
    with tempfile.TemporaryDirectory() as work:
        contestants = _contestants(Path(work))
        seconds: dict[tuple[str, int], list[float]] = {}
        absent = {one.name: problem for one in contestants if one.work in PEERS and (problem := _problem(one))}
        contestants = [one for one in contestants if one.name not in absent]
        for number, neighbours, one in itertools.product(range(rounds), NEIGHBOURS, contestants):
            with _busy(neighbours):
                found = in_child("benchmarks.busy_child", one.work, one.argument, environment=dict(one.environment))
            seconds.setdefault((one.name, neighbours), []).append(found["seconds"])
            click.echo(f"round {number + 1}, {neighbours} beside, {one.name}: {found['seconds']:.4f} s", err=True)
            if (neighbours, one) == (NEIGHBOURS[-1], contestants[-1]):
                rows = _write(out, contestants, seconds, rounds=number + 1, absent=absent, load_at_start=load)
    for name, row in rows.items():
        times = "  ".join(f"{row['slower'][str(count)]:5.2f} x" for count in NEIGHBOURS[1:])
        click.echo(f"{name:50} {row['seconds']['0']['median'] * 1e3:8.2f} ms idle  {times} beside one and two")


def _write(
    out: Path, contestants: list[Contestant], seconds: dict[tuple[str, int], list[float]], **more: Any
) -> dict[str, Any]:
    """The rounds so far, so that a run cut short leaves those that were whole."""
    rows = {one.name: _row(one, seconds) for one in contestants}
    write_json(
        out,
        {
            "what": "seconds of a training step, a repair step, 12 answers of a torch model, a decoded token",
            "neighbours": "processes that keep a core busy",
            "rows": rows,
            **more,
            "provenance": provenance(seed=0),
        },
    )
    return rows


def _problem(one: Contestant) -> str | None:
    """Why a peer does not run here; None where it does."""
    try:
        in_child("benchmarks.busy_child", one.work, one.argument, environment=dict(one.environment))
    except click.ClickException as error:
        return (error.message.splitlines() or ["it ended without a word"])[-1]
    return None


def _row(one: Contestant, seconds: dict[tuple[str, int], list[float]]) -> dict[str, Any]:
    found = {str(count): spread(seconds[one.name, count]) for count in NEIGHBOURS}
    slower = {count: values["median"] / found["0"]["median"] for count, values in found.items()}
    environment = {name: Path(value).name for name, value in one.environment}  # a library by its file's name
    return {"work": one.work, "environment": environment, "seconds": found, "slower": slower}


def _contestants(folder: Path) -> list[Contestant]:
    """All of them, their files made."""
    from benchmarks.gguf_model import quantize, write_gguf

    found = []
    for work in ("training step", "repair step", "torch answers"):
        for way, environment in (("as torch comes", AS_IT_COMES), ("edgetune", {})):
            found.append(Contestant(f"{work}, {way}", work, environment=tuple(environment.items())))
    for way, environment in OTHERS.items():
        found.append(Contestant(f"training step, {way}", "training step", environment=tuple(environment.items())))
    found.append(
        Contestant("training step, transformers.Trainer", "trainer step", environment=tuple(AS_IT_COMES.items()))
    )
    if INTELS.exists():
        for way, environment in (("Intel's OpenMP as it comes", AS_IT_COMES), ("Intel's OpenMP, edgetune", {})):
            variables = {"LD_PRELOAD": str(INTELS), **environment}
            found.append(Contestant(f"training step, {way}", "training step", environment=tuple(variables.items())))
    merged = _random_llama(folder / "merged")
    for number, (way, options) in enumerate(
        {
            "as onnxruntime comes": {"session.intra_op.allow_spinning": "1"},
            "no spinning": {"session.intra_op.allow_spinning": "0"},
            "edgetune": None,
        }.items()
    ):
        bundle = _bundle(merged, folder / f"bundle-{number}", {})
        if options is not None:
            _set_options(bundle / GENAI_CONFIG, options)
        found.append(Contestant(f"decoded token, {way}", "edgetune token", str(bundle)))
    source = quantize(write_gguf(merged, folder / "model.gguf"), folder / "q4.gguf", "Q4_K_M")
    return [*found, Contestant("decoded token, llama.cpp Q4_K_M", "llama.cpp token", str(source))]


def _set_options(path: Path, options: dict[str, str]) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = config["model"]["decoder"]["session_options"]
    config["model"]["decoder"]["session_options"] = {
        **{name: value for name, value in kept.items() if "spin" not in name},
        **options,
    }
    path.write_text(json.dumps(config), encoding="utf-8")


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes that each keep a core busy."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY], env=os.environ) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    main()
