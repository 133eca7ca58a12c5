"""A run folder -> what a report says of it. Every part may be missing or damaged: it is named and left out."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgetune.errors import RunError
from edgetune.files import read_json
from edgetune.report.facts import (
    STAGES,
    Candidate,
    Confusion,
    Curve,
    LabelScore,
    Model,
    Number,
    Planned,
    Problems,
    Run,
    Search,
    Step,
    Training,
    needed_number,
    number,
    with_interval,
)
from edgetune.report.measured import read_result, read_training, titled
from edgetune.report.samples import read_samples
from edgetune.run_dir import RunDir

MOST_LABELS = 200
STEP_NUMBERS = (
    *("score", "loss", "kl", "same_next_token", "same_answers", "first_difference"),
    *("in_scope_accuracy", "out_of_scope_recall", "disk_bytes", "gain_kept"),
)


def read_run(run_dir: RunDir, *, name: str, path: str, problems: Problems) -> Run:
    """All that a run folder tells; what cannot be read becomes a line of `problems`."""
    results, attempt = run_dir.results, problems.attempt
    recipe = attempt(f"{run_dir.recipe}", partial(_recipe, run_dir.recipe)) or ("", {})
    model, export = (_table(recipe[1], key) for key in ("model", "export"))
    precision = str(export.get("precision", ""))
    summary = _read(results / "summary.json", problems, f"the run is not finished: {results}/summary.json is missing")
    survival = _read(results / "survival.json", problems)
    models = read_models(results, name, precision, problems)
    bundle = _read(results / "bundle.json", problems) if any(item.stage == "bundle" for item in models) else None
    classes = bundle["score"].get("classes") if bundle else None
    found = attempt(f"{results}/bundle.json", partial(_labels, classes)) if classes else None
    kept = attempt(f"{results}/survival.json", partial(_gain, survival)) if survival else None
    changed = attempt(f"{results}/survival.json", partial(_with_changes, models, survival)) if survival else None
    confusion, labels = found or (None, ())
    return Run(
        name=name,
        path=path,
        task=str(model.get("task", "generation")),
        metric=str(_table(recipe[1], "evaluate").get("metric", "")) or None,
        base=str(model.get("base") or "") or None,
        models=tuple(changed or models),
        curve=attempt(f"{run_dir.events}", partial(_curve, run_dir.events)) if run_dir.events.exists() else None,
        ledger=_optional(results / "ledger.json", _ledger, problems) or (),
        verdict=str(survival["verdict"]) if survival and survival.get("verdict") else None,
        passed=survival["passed"] if survival and isinstance(survival.get("passed"), bool) else None,
        gain_kept=kept,
        confusion=confusion,
        labels=labels,
        planned=attempt(f"{results}/summary.json", partial(_planned, summary)) if summary else None,
        training=_training(results, summary, name, problems),
        stage_s=(attempt(f"{results}/summary.json", partial(_seconds, summary)) if summary else None) or {},
        search=_optional(results / "search.json", _search, problems),
        samples=attempt(f"{results}", partial(read_samples, results, problems)) or (),
        data=_source(results / "rows.json"),
        recipe=recipe[0] or None,
        provenance=_provenance(run_dir, summary, problems),
    )


def _read(path: Path, problems: Problems, missing: str = "") -> dict[str, Any] | None:
    """A JSON object; None where there is none, which is worth a line if `missing` says so, or a damaged one."""
    if not path.exists():
        if missing:
            problems.lines.append(missing)
        return None
    return problems.attempt(str(path), lambda: read_json(path))


def _optional(path: Path, read: Any, problems: Problems) -> Any:
    """What `read` makes of a JSON file; None where there is none."""
    values = _read(path, problems)
    return None if values is None else problems.attempt(str(path), partial(read, values))


def _recipe(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    return text, tomllib.loads(text)


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def read_models(results: Path, name: str, precision: str, problems: Problems) -> list[Model]:
    """The models that a folder of results has the numbers of, in the order of the way to the device."""
    found = []
    for stage in STAGES:
        path = results / f"{stage}.json"
        if (values := _read(path, problems)) is not None:
            make = partial(read_result, values, source=name, stage=stage, name=titled(stage, precision))
            found.append(problems.attempt(str(path), make))
    return [model for model in found if model is not None]


def _curve(path: Path) -> Curve:
    """From events.jsonl; lines that a killed process left half written are nothing."""
    training, evaluation = dict[int, float](), dict[int, float]()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict) or event.get("stage") != "train" or number(event.get("step")) is None:
            continue
        for key, losses in (("loss", training), ("eval_loss", evaluation)):
            if (loss := number(event.get(key))) is not None:
                losses[int(event["step"])] = loss
    return Curve(tuple(sorted(training.items())), tuple(sorted(evaluation.items())))


def _ledger(values: Mapping[str, Any]) -> tuple[Step, ...]:
    steps = []
    for item in values["stages"]:
        found = {
            key: with_interval(item.get(key), item.get("interval") if key == "score" else None) for key in STEP_NUMBERS
        }
        there = {key: value for key, value in found.items() if value is not None}
        steps.append(Step(str(item["stage"]), str(item["name"]), there))
    return tuple(steps)


def _gain(survival: Mapping[str, Any]) -> Number | None:
    """Of the score, or of the loss where there is no score."""
    gain = survival.get("score") or survival.get("loss") or {}
    return with_interval(gain.get("kept"), gain.get("interval"))


def _with_changes(models: Sequence[Model], survival: Mapping[str, Any]) -> list[Model]:
    """The models, the bundle's with the share of rows whose answer is not the fine-tune's; as they are without one."""
    close = survival.get("closeness") or {}
    changed = with_interval(close.get("changed_rows"), close.get("interval"))
    added = {} if changed is None else {"changed_rows": changed}
    return [
        dataclasses.replace(model, values={**model.values, **added}) if model.stage == "bundle" else model
        for model in models
    ]


def _training(results: Path, summary: Mapping[str, Any] | None, name: str, problems: Problems) -> Training | None:
    """What the training cost: by results/train.json, else by the run's summary."""
    train = results / "train.json"
    for path, values in ((train, _read(train, problems)), (results / "summary.json", (summary or {}).get("train"))):
        found = None if values is None else problems.attempt(str(path), partial(read_training, values, source=name))
        if found is not None:
            return found
    return None


def _labels(classes: Mapping[str, Any]) -> tuple[Confusion | None, tuple[LabelScore, ...]]:
    scores = tuple(
        LabelScore(
            label=str(item["label"]),
            **{key: _needed(item[key], item.get(f"{key}_interval")) for key in ("precision", "recall", "f1")},
            support=int(item["support"]),
        )
        for item in classes["per_class"]
    )
    counts = classes.get("confusion")
    if not counts:
        return None, scores
    matrix = tuple(tuple(int(needed_number(cell)) for cell in row) for row in counts)
    if len(matrix) > MOST_LABELS or any(len(row) != len(scores) for row in matrix) or len(matrix) != len(scores):
        raise ValueError(f"a confusion matrix of {len(matrix)} rows for {len(scores)} labels")
    return Confusion(tuple(score.label for score in scores), matrix), scores


def _needed(value: Any, interval: Any) -> Number:
    found = with_interval(value, interval)
    if found is None:
        raise ValueError(f"{value!r:.40} is no number")
    return found


def _planned(summary: Mapping[str, Any]) -> Planned:
    estimate, train = summary["estimate"], summary["train"]
    parts = {str(part): int(needed_number(size)) for part, size in estimate["parts"].items()}
    measured = number(train.get("peak_bytes"))
    return Planned(parts, int(needed_number(estimate["peak_bytes"])), None if measured is None else int(measured))


def _seconds(summary: Mapping[str, Any]) -> dict[str, float]:
    return {str(stage): needed_number(seconds) for stage, seconds in summary["stage_s"].items()}


def _search(values: Mapping[str, Any]) -> Search:
    chosen = values["chosen"]
    return Search(tuple(_candidate(point, chosen) for point in values["points"]), str(values.get("reason", "")))


def _candidate(point: Mapping[str, Any], chosen: Mapping[str, Any]) -> Candidate:
    layers = point.get("int8_layers") or []
    settings = [
        f"block {point['block_size']}",
        "symmetric" if point["symmetric"] else "asymmetric",
        *([f"head {point['head_bits']}"] if point.get("head_bits") else []),
        "GPTQ" if point.get("calibrated") else "nearest",
        *([f"{len(layers)} in int8"] if layers else []),
    ]
    tokens_per_s, peak = number(point.get("tokens_per_s")), number(point.get("peak_bytes"))
    return Candidate(
        name=", ".join(settings),
        size_bytes=int(needed_number(point["size_bytes"])),
        loss=needed_number(point["loss"]),
        on_front=bool(point.get("on_front")),
        is_chosen=point == chosen,
        score=number(point.get("score")),
        tokens_per_s=tokens_per_s,
        peak_bytes=None if peak is None else int(peak),
    )


def _source(path: Path) -> str | None:
    """Where the scored rows come from."""
    try:
        source = read_json(path).get("source")
    except RunError:
        return None
    return source if isinstance(source, str) else None


def _provenance(run_dir: RunDir, summary: Mapping[str, Any] | None, problems: Problems) -> Mapping[str, Any]:
    record = problems.attempt(str(run_dir.run_json), run_dir.read) or {}
    return _table(record, "provenance") or _table(summary or {}, "provenance")
