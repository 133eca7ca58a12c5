"""Run folders that no training made: the files of a finished run, in the shapes that the stages write them."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

from edgetune.bundle.candidates import Point, mark_front
from edgetune.evaluate.distance import Distance
from edgetune.evaluate.evaluate import Result, Target, result_values
from edgetune.evaluate.labeller import LabelAnswer, LabelScore, Latency
from edgetune.evaluate.ledger import Entry
from edgetune.evaluate.metrics import FieldScore
from edgetune.evaluate.score import Answer, Score, Speed
from edgetune.provenance import provenance
from edgetune.run_dir import RunDir

MIB = 1024**2
STEPS = {  # bytes on disk, peak bytes, tokens/s, lost points
    "base": (12 * MIB, 430 * MIB, 190.0, None),
    "tuned": (16 * MIB, 512 * MIB, 44.0, 0.0),
    "merged": (24 * MIB, 433 * MIB, 192.0, 0.0),
    "onnx-fp32": (24 * MIB, 104 * MIB, 300.0, 0.0),
    "onnx-exact": (4 * MIB, 102 * MIB, 210.0, 0.01),
    "bundle": (4 * MIB, 83 * MIB, 3000.0, 0.02),
}
RECIPE = """\
[model]
base = "{base}"
task = "{task}"

[data]
train = "rows.jsonl"

[export]
precision = "int4"

[evaluate]
metric = "{metric}"
"""


def make_run(folder: Path, *, score: float = 0.8, seed: int = 0, rows: int = 40, searched: bool = True) -> Path:
    """A decoder's run whose fine-tune has `score`."""
    draw, run_dir = random.Random(seed), _start(folder, "generation", "json")
    results, entries = run_dir.results, []
    for place, (stage, (disk, peak, speed, lost)) in enumerate(STEPS.items()):
        reached = 0.02 if lost is None else score - lost
        loss = 2.6 if lost is None else 0.05 + lost
        interval = max(0.0, reached - 0.05), min(1.0, reached + 0.04)
        fields = FieldScore(reached, reached, min(1.0, reached + 0.1), (0.1, 0.9), 0.95, 80, 90, 100)
        found = Score(
            "json", rows, reached, interval, loss, (loss * 0.9, loss * 1.1), 1.1, 900, reached, fields, 0.95, 3.0
        )
        times = Speed(speed, speed * 0.9, speed * 1.1, 8, 200)
        distance = Distance(0.001 * place, 0.99, 900)
        target = Target("bundle" if "onnx" in stage else stage, stage, run_dir.path / stage)  # type: ignore[arg-type]
        _write(
            results / f"{stage}.json",
            result_values(Result(target, found, times, disk, peak, None, peak, 9.0, distance)),
        )
        answers = [_answer(number, draw.random() < reached) for number in range(rows)]
        _lines(results / f"{stage}-answers.jsonl", [dataclasses.asdict(answer) for answer in answers])
        kept = None if stage in ("base", "tuned") else 1.0 - lost / score
        entries.append(
            Entry(stage, f"the {stage}", reached, interval, loss, 0.001 * place, 0.99, 0.9, 3.0, 500, disk, kept)
        )
    _write(results / "ledger.json", {"metric": "json", "stages": [dataclasses.asdict(entry) for entry in entries]})
    _finish(run_dir, score)
    if searched:
        _write(results / "search.json", _searched(draw))
    return folder


def make_label_run(folder: Path, labels: tuple[str, ...] = ("card", "money", "weather"), *, seed: int = 0) -> Path:
    """A classifier's run."""
    draw, run_dir = random.Random(seed), _start(folder, "classification", "accuracy")
    count = len(labels)
    matrix = [[12 if row == column else draw.choice([0, 0, 1, 3]) for column in range(count)] for row in range(count)]
    per_class = [
        {
            name: value
            for part in ("precision", "recall", "f1")
            for name, value in ((part, 0.9), (f"{part}_interval", (0.8, 0.95)))
        }
        | {"label": label, "support": sum(matrix[number])}
        for number, label in enumerate(labels)
    ]
    classes = {"accuracy": 0.9, "accuracy_interval": (0.85, 0.93), "macro_f1": 0.89, "macro_f1_interval": (0.8, 0.92)}
    classes |= {"ece": 0.02, "ece_interval": (0.01, 0.05), "per_class": per_class, "confusion": matrix}
    for stage in ("tuned", "merged", "bundle"):
        disk, peak, _, _ = STEPS[stage]
        found = LabelScore("accuracy", 60, 0.9, (0.85, 0.93), 0.3, (0.2, 0.4), 1.2, classes, None, False, 0.95, 2.0)
        target = Target(stage, stage, run_dir.path / stage, None, "classification")  # type: ignore[arg-type]
        _write(
            run_dir.results / f"{stage}.json",
            result_values(Result(target, found, Latency(0.004, 0.008, 50), disk, peak, None, peak, 5.0)),
        )
        answers = [
            LabelAnswer(
                f"text {number}",
                (labels[0],),
                (labels[number % count],),
                0.9,
                False,
                number % count == 0,
                f"rows.csv:{number}",
            )
            for number in range(12)
        ]
        _lines(run_dir.results / f"{stage}-answers.jsonl", [dataclasses.asdict(answer) for answer in answers])
    _finish(run_dir, 0.9)
    return folder


def encoder_target(name: str) -> dict[str, object]:
    """An encoder as `edgetune bench` measures it."""

    def noisy(median: float) -> dict[str, object]:
        return {"median": median, "p95": median * 1.2, "least": median * 0.9, "most": median * 1.1, "spread": 0.2}

    lacks = {"absent": "labels texts, writes none"}
    sizes = (1, 8, 32)
    batches = {str(n): {"latency_s": noisy(0.01 * n), "texts_per_s": noisy(100.0 * n)} for n in sizes}
    peaks = {
        "cold": noisy(80.0 * MIB),
        "warm": noisy(70.0 * MIB),
        "device": {"absent": "no GPU was used"},
        "tokens": 64,
    }
    return {
        "name": name,
        "path": name,
        "kind": "bundle",
        "task": "classification",
        "disk_bytes": 20 * MIB,
        "score": {"metric": "accuracy", "value": 0.9, "interval": [0.85, 0.93], "rows": 60},
        "loss": {"value": 0.3, "interval": [0.2, 0.4], "texts": 60},
        "classes": {"accuracy": 0.9, "macro_f1": 0.88, "ece": 0.02},
        **dict.fromkeys(("perplexity", "kl", "peak_bytes", "decode_tokens_per_s"), lacks),
        "device": "cpu",
        "context_length": 64,
        "load_s": noisy(0.1),
        "labelling": {
            "batch": {"16": batches, "64": batches, "128": {"absent": "its texts hold 64 tokens"}},
            "peak_bytes": {"1": peaks, "32": peaks},
        },
    }


def bench_report(names: tuple[str, ...] = ("base", "bundle")) -> dict[str, object]:
    """A report as `edgetune bench` writes it; energy, warm memory and the time of a training are absent."""

    def noisy(median: float) -> dict[str, object]:
        return {"median": median, "p95": median * 1.2, "least": median * 0.9, "most": median * 1.1, "spread": 0.2}

    targets = []
    for number, name in enumerate(names, 1):
        target: dict[str, object] = {
            "name": name,
            "path": name,
            "kind": name,
            "task": "generation",
            "disk_bytes": number * MIB,
        }
        target |= {"score": {"metric": "json", "value": 0.7, "interval": [0.6, 0.8], "rows": 40}}
        target |= {
            "loss": {"value": 0.1, "interval": [0.09, 0.12], "trained_tokens": 900},
            "kl": {"kl": 0.01, "agreement": 0.98},
        }
        target |= {"load_s": noisy(0.2), "decode_tokens_per_s": noisy(900.0 * number), "context_length": 1024}
        target["peak_bytes"] = {"512": {"cold": noisy(90.0 * MIB), "warm": {"absent": "cannot start anew"}}}
        target["energy_j_per_token"] = {"absent": "no energy counter can be read here"}
        targets.append(target)
    data = {"source": "rows.jsonl", "metric": "json", "rows": 40}
    settings = {"threads": 1, "repeats": 2, "cores": [0]}
    facts = {"format": "edgetune-bench", "version": 1, "settings": settings, "reference": names[0], "left_out": []}
    training = {
        "run": "quick",
        "path": "runs/quick",
        "peak_bytes": {"value": 700 * MIB},
        "tokens_per_s": {"value": 1200.0},
        "step_tokens_per_s": {"median": 1210.0, "least": 1100.0, "most": 1300.0, "samples": 90},
        "wall_s": {"absent": "runs/quick/results/train.json: not there"},
        "provenance": None,
    }
    return {**facts, "data": data, "targets": targets, "training": [training], "provenance": provenance(0)}


def _start(folder: Path, task: str, metric: str) -> RunDir:
    run_dir = RunDir(folder)
    run_dir.results.mkdir(parents=True)
    run_dir.recipe.write_text(RECIPE.format(base="edgetune:nano", task=task, metric=metric), encoding="utf-8")
    _write(run_dir.run_json, {"asked": {}, "provenance": provenance(0)})
    _write(run_dir.results / "rows.json", {"source": "rows.jsonl"})
    events = [{"stage": "train", "step": step, "loss": 3.0 / step} for step in range(1, 101)]
    events += [{"stage": "train", "step": step, "eval_loss": 3.2 / step} for step in range(10, 101, 10)]
    _lines(run_dir.events, events)
    return run_dir


def _finish(run_dir: RunDir, score: float) -> None:
    kept = {"kept": 0.975, "interval": [0.93, 1.01]}
    survival = {"score": kept, "loss": kept, "passed": score > 0.5, "verdict": "97.5% of the gain in score kept"}
    survival["closeness"] = {"kl": 0.005, "changed_rows": 0.025, "interval": [0.0, 0.075], "rows": 40, "unit": "token"}
    _write(run_dir.results / "survival.json", survival)
    parts = {"Python and libraries": 545 * MIB, "saved activations": 290 * MIB, "matrix workspace": 0}
    summary = {
        "recipe": run_dir.path.name,
        "estimate": {"parts": parts, "peak_bytes": 835 * MIB},
        "train": {"peak_bytes": 900 * MIB},
        "stage_s": {"train": 120.0, "export": 30.5},
        "provenance": provenance(0),
    }
    _write(run_dir.results / "summary.json", summary)
    cost = {"peak_bytes": 900 * MIB, "tokens_per_s": 1500.0, "wall_s": 130.0, "steps": 100, "tokens": 180_000}
    _write(run_dir.results / "train.json", {**cost, "restarts": [], "provenance": provenance(0)})


def _answer(number: int, is_right: bool) -> Answer:
    wanted = json.dumps({"action": "turn_on", "device": f"lamp {number}", "room": "kitchen"})
    text = wanted if is_right else json.dumps({"action": "turn_off", "device": f"lamp {number}"})
    return Answer(
        f"turn on lamp {number} in the kitchen",
        wanted,
        text,
        is_right,
        float(is_right),
        0.1,
        2.0,
        20,
        f"/data/rows.jsonl:{number}",
    )


def _searched(draw: random.Random) -> dict[str, object]:
    points = []
    for block in (16, 32, 64, 128, 256):
        for head in (4, 8):
            size, loss = int((5 - block / 100) * MIB + head * 20_000), 0.08 + block / 5000 + draw.random() / 200
            points.append(Point(block, False, head, True, (), loss, size))
    points = mark_front(points)
    best = next(point for point in points if point.on_front)
    chosen = dataclasses.replace(best, score=0.78, tokens_per_s=2900.0, peak_bytes=83 * MIB)
    points = [chosen if point is best else point for point in points]
    values = [dataclasses.asdict(point) for point in points]
    return {"reason": "least loss of 5 measured candidates", "chosen": dataclasses.asdict(chosen), "points": values}


def _write(path: Path, values: object) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def _lines(path: Path, values: list) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
