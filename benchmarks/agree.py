"""Whether the numbers of `edgetune bench` are those of references measured apart.

    python -m benchmarks.agree --run runs/quickstart

Peak memory against /usr/bin/time -v, tokens/s against llama.cpp's own timings of the same calls, perplexity against a
plain loop in torch, scores of a local task against lm-evaluation-harness's own backends: transformers for the merged
model, onnxruntime for the bundle. Exit code 1 if one is further off than it may be. Needs `pip install -e
'.[bench,lm-eval]'` and, for the memory, GNU time.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.lm_eval_task import write_task
from benchmarks.measure import load_at_start
from edgetune.bench.child import measure
from edgetune.evaluate.by_path import evaluate_path
from edgetune.files import read_json, write_json
from edgetune.model.base import resolve_base
from edgetune.provenance import provenance
from edgetune.recipe import ModelTable

TIME = Path("/usr/bin/time")
CONTEXT = 512
ROWS = 40
PROMPT_TOKENS = NEW_TOKENS = 128
LIMITS = {"peak memory": 0.03, "tokens/s": 0.05, "perplexity": 1e-4, "lm-eval score": 1e-5}
"""How far off a number may be, as a share of the reference."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A number and its reference."""

    quantity: str
    of: str
    ours: float
    reference: float

    @property
    def off(self) -> float:
        """How far off it is, as a share of the reference."""
        return abs(self.ours - self.reference) / abs(self.reference)


@click.command()
@click.option("--run", type=click.Path(exists=True, path_type=Path), default=Path("runs/quickstart"), show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Of timed calls; the median counts.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/agree.json"))
def main(run: Path, rounds: int, out: Path) -> None:
    """Measure and write JSON."""
    load = load_at_start()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        checks = [*memory(run), *speed(folder, rounds), *perplexity(run, folder), *harness(run, folder)]
    rows = [{**dataclasses.asdict(check), "off": check.off, "limit": LIMITS[check.quantity]} for check in checks]
    report = {
        "what": "numbers of edgetune bench against references measured apart",
        "rows": rows,
        "holds": all(row["off"] <= row["limit"] for row in rows),
        "scored_rows": ROWS,
        "context": CONTEXT,
        "rounds": rounds,
        "load_at_start": load,
        "provenance": provenance(seed=0),
    }
    write_json(out, report)
    for row in rows:
        click.echo(
            f"{row['quantity']:14} {row['of']:34} {row['ours']:14.6g} {row['reference']:14.6g}  off {row['off']:.2e}"
        )
    if not report["holds"]:
        raise SystemExit(1)


def memory(run: Path) -> Iterator[Check]:
    """Cold and warm, of the run's bundle and of its base, each in a process under `time -v`; none without GNU time."""
    if not TIME.exists():
        click.echo(f"{TIME} is not there, so no memory is compared: apt-get install time", err=True)
        return
    for kind, path in (("bundle", run / "bundle"), ("base", resolve_base("edgetune:nano"))):
        for state, is_warm_too in (("cold", False), ("warm", True)):
            request = {"measure": "memory", "context": CONTEXT, "is_warm_too": is_warm_too, **_target(kind, path)}
            ours, reference = _under_time(request, state)
            yield Check("peak memory", f"{kind}, {state}, bytes", ours, reference)


def speed(folder: Path, rounds: int) -> Iterator[Check]:
    """Decode and prefill of a 125 M-parameter Llama shape in Q4_0, by our clock and by llama.cpp's."""
    from benchmarks.decode import _random_llama
    from benchmarks.gguf_model import quantize, write_gguf
    from edgetune.model.gguf import Gguf

    source = write_gguf(_random_llama(folder / "model"), folder / "model.gguf")
    file = Gguf(quantize(source, folder / "q4.gguf", "Q4_0"))
    ids = list(range(10, 10 + PROMPT_TOKENS))
    file.token_seconds(ids, new_tokens=NEW_TOKENS)
    found: dict[str, list[tuple[float, float]]] = {"prefill": [], "decode": []}
    for _ in range(rounds):
        file._api.llama_perf_context_reset(file._context)
        ours = file.token_seconds(ids, new_tokens=NEW_TOKENS)
        theirs = file._api.llama_perf_context(file._context)
        found["prefill"].append((PROMPT_TOKENS / ours[0], 1e3 * theirs.n_p_eval / theirs.t_p_eval_ms))
        found["decode"].append(((NEW_TOKENS - 1) / sum(ours[1:]), 1e3 * theirs.n_eval / theirs.t_eval_ms))
    for name, pairs in found.items():
        ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
        yield Check("tokens/s", f"{name}, Q4_0 of llama.cpp", ours, theirs)


def perplexity(run: Path, folder: Path) -> Iterator[Check]:
    """Of the run's merged model on its own test rows: by evaluate, as a bench does, and by a plain loop in torch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = run / "merged"
    overrides = ['evaluate.metric="loss"', f"evaluate.max_rows={ROWS}", 'model.compute_dtype="float32"']
    found = evaluate_path(str(merged), overrides=overrides, out=folder / "perplexity")
    ours = found.summary["results"][0]["score"]["perplexity"]
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    nats, count = 0.0, 0
    for row in _rows(folder / "perplexity"):
        asked = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        told = [*row["messages"], {"role": "assistant", "content": row["reference"]}]
        start = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        text = tokenizer.apply_chat_template(told, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            likely = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        nats -= sum(float(likely[place - 1, ids[place]]) for place in range(start, len(ids)))
        count += len(ids) - start
    yield Check("perplexity", f"merged model, {ROWS} rows", ours, math.exp(nats / count))


def harness(run: Path, folder: Path) -> Iterator[Check]:
    """A local task of lm-eval: which of four answers belongs to the beginning of a question."""
    os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.onnxruntime_ort import ONNXRuntimeLM

    rows = _rows(folder / "perplexity")
    answers = [row["reference"] for row in rows]
    questions = [
        {"prompt": row["messages"][-1]["content"][:9], "label": number % 4, "choices": _choices(answers, number)}
        for number, row in enumerate(rows)
    ]
    tasks = write_task(folder / "tasks", "home", questions)
    merged, bundle = run / "merged", run / "bundle"
    as_torch = HFLM(pretrained=str(merged), dtype="float32", device="cpu", batch_size=1)
    as_graph = ONNXRuntimeLM(pretrained=str(bundle), execution_provider="cpu")
    for kind, path, model in (("merged", merged, as_torch), ("bundle", bundle, as_graph)):
        for metric, ours, theirs in _task_scores(tasks, _target(kind, path), model):
            yield Check("lm-eval score", f"{metric}, {kind}, {len(rows)} rows", ours, theirs)


def _task_scores(tasks: Path, target: dict[str, Any], model: Any) -> Iterator[tuple[str, float, float]]:
    """(metric, its value as a bench measures it of a target, the same by the harness with a model of its own)."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    task = {"task_name": "home", "tasks_from": str(tasks), "limit": None, "shots": None, "is_chat": False}
    ours = measure({"measure": "lm-eval", **task, **target}, lambda _: None)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    theirs = lm_eval.simple_evaluate(model=model, tasks=["home"], task_manager=manager, bootstrap_iters=0)
    for key in ("acc,none", "acc_norm,none"):
        yield key.partition(",")[0], ours["lm_eval"]["results"][key], theirs["results"]["home"][key]


def _choices(answers: list[str], number: int) -> list[str]:
    """Four answers, the right one at place `number` modulo 4."""
    others = [answer for answer in dict.fromkeys(answers) if answer != answers[number]]
    drawn = [others[(7 * number + step) % len(others)] for step in range(3)]
    return [*drawn[: number % 4], answers[number], *drawn[number % 4 :]]


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that an evaluation scored."""
    rows: list[dict[str, Any]] = read_json(folder / "rows.json")["rows"]
    return rows


def _target(kind: str, path: Path) -> dict[str, Any]:
    """How a child is told of a target."""
    table = ModelTable(base=str(path), quantization="none", compute_dtype="float32")
    model = None if kind == "bundle" else dataclasses.asdict(table)
    return {"kind": kind, "name": kind, "path": str(path), "model": model, "threads": 1, "task": "generation"}


def _under_time(request: dict[str, Any], state: str) -> tuple[float, float]:
    """Peak bytes as the child measures them, and as GNU time does."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as told:
        command = [str(TIME), "-v", "-o", told.name, sys.executable, "-m", "edgetune.bench.child"]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=True)
        maximum = re.search(r"Maximum resident set size \(kbytes\): (\d+)", told.read())
    if maximum is None:
        raise click.ClickException(f"{TIME} is not GNU's: it tells no maximum resident set size")
    return float(json.loads(done.stdout.splitlines()[-1])["result"][state]), 1024.0 * int(maximum[1])


if __name__ == "__main__":
    main()
