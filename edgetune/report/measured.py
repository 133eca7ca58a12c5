"""Measured models from JSON: results of `edgetune evaluate` and of a run, reports of `edgetune bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from edgetune.report.columns import TRAINING
from edgetune.report.facts import Measurement, Model, Number, Problems, Training, number, with_interval
from edgetune.report.figures import figures_of
from edgetune.report.samples import read_bench_samples

_Found = TypeVar("_Found")
BENCH, BENCH_VERSION = "edgetune-bench", 1
"""What a report of `edgetune bench` calls itself, and the version of its keys that is read here."""
TITLES = {
    "base": "base",
    "tuned": "fine-tuned",
    "merged": "merged",
    "onnx-fp32": "float32 ONNX",
    "onnx-exact": "{} ONNX, exact activations",
    "bundle": "{} bundle",
}


def read_result(values: Mapping[str, Any], *, source: str, stage: str, name: str) -> Model:
    """The model of a result file, results/<target>.json. Raises KeyError, ValueError where it is none."""
    score, speed = values["score"], values.get("speed") or {}
    found = {
        f"score.{score['metric']}": with_interval(score.get("score"), score.get("interval")),
        "loss": with_interval(score["loss"], score.get("loss_interval")),
        "perplexity": with_interval(score.get("perplexity"), None),
        **{key: with_interval(values.get(key), None) for key in ("disk_bytes", "peak_bytes", "device_peak_bytes")},
        "tokens_per_s": with_interval(speed.get("tokens_per_s"), [speed.get("low"), speed.get("high")]),
        "latency_s": with_interval(speed.get("median_s"), None),
        "p95_s": with_interval(speed.get("p95_s"), None),
        **_details(score),
        **_distance(_table(values.get("distance"))),
    }
    rows = number(score.get("rows"))
    return Model(source, stage, name, _there(found), rows=None if rows is None else int(rows))


def read_evaluation(values: Mapping[str, Any], *, name: str, path: str, problems: Problems) -> Measurement:
    """What `edgetune evaluate` wrote as summary.json; a result that is damaged becomes a line of `problems`."""

    def read(item: Mapping[str, Any]) -> Model:
        target = item["target"]
        return read_result(item, source=name, stage=str(target["kind"]), name=str(target["name"]))

    models = _each(values["results"], read, what=f"{path}: result", problems=problems)
    return Measurement(name, path, models, _text(values.get("source")), _table(values.get("provenance")))


def read_bench(values: Mapping[str, Any], *, name: str, path: str, problems: Problems) -> Measurement:
    """What `edgetune bench` wrote, with samples of the answers beside it. A target that is damaged, or that the bench
    itself left out, becomes a line of `problems`. Raises KeyError, ValueError for another version.
    """
    if values.get("version") != BENCH_VERSION:
        raise ValueError(f"version {values.get('version')!r:.20} of {BENCH}, this EdgeTune reads {BENCH_VERSION}")
    targets = values["targets"]
    models = _each(targets, partial(_target, source=name), what=f"{path}: target", problems=problems)
    for item in values.get("left_out") or ():
        told = problems.attempt(f"{path}: left out", partial("{0[target]}: not measured: {0[reason]}".format, item))
        problems.lines += [f"{path}: {told}"] if told else []
    answers = {
        str(item["name"]): Path(path).parent / item["answers"]
        for item in targets
        if isinstance(item, Mapping) and "name" in item and isinstance(item.get("answers"), str)
    }
    samples = read_bench_samples(answers, _text(values.get("reference")), problems)
    source = _text(_table(values.get("data")).get("source"))
    costs, read = values.get("training") or (), partial(_bench_training, source=name)
    trainings = _each(costs, read, what=f"{path}: training", problems=problems)
    return Measurement(name, path, models, source, _table(values.get("provenance")), samples, trainings)


def read_training(values: Mapping[str, Any], *, source: str) -> Training:
    """What a run left of its training, as results/train.json has it. Raises ValueError if that is nothing."""
    found = _there({key: with_interval(values.get(key), None) for key in TRAINING})
    if not found:
        raise ValueError("tells nothing of a training")
    return Training(source, source, found)


def _bench_training(item: Mapping[str, Any], *, source: str) -> Training:
    return Training(source, str(item["run"]), *_known({key: item[key] for key in TRAINING if key in item}))


def _each(items: Sequence[Any], read: Callable[[Any], _Found], *, what: str, problems: Problems) -> tuple[_Found, ...]:
    """What is made of those items that can be read."""
    found = [problems.attempt(f"{what} {number}", partial(read, item)) for number, item in enumerate(items, 1)]
    return tuple(item for item in found if item is not None)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def titled(stage: str, precision: str) -> str:
    """What a stage of a run is called."""
    return TITLES.get(stage, stage).format(precision)


def _target(item: Mapping[str, Any], *, source: str) -> Model:
    values, absent = _known(figures_of(item))
    score = item.get("score")
    rows = number(score.get("rows")) if isinstance(score, Mapping) else None
    return Model(
        source, str(item.get("kind", "")), str(item["name"]), values, None if rows is None else int(rows), absent
    )


def _known(figures: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Number], dict[str, str]]:
    """The figures that are there, and why the others are absent."""
    absent = {key: str(found["absent"]) for key, found in figures.items() if "absent" in found}
    return _there({key: _number(found) for key, found in figures.items() if key not in absent}), absent


def _number(found: Mapping[str, Any]) -> Number | None:
    """A figure with its interval, or least and most."""
    point = found["value"] if "value" in found else found["median"]
    return with_interval(point, found.get("interval") or [found.get("least"), found.get("most")])


def _details(score: Mapping[str, Any]) -> dict[str, Number | None]:
    """Scores beside the one that counts."""
    found: dict[str, Number | None] = {}
    if isinstance(fields := score.get("fields"), Mapping):
        found["fields_f1"] = with_interval(fields.get("f1"), fields.get("f1_interval"))
        found["valid"] = with_interval(fields.get("valid"), None)
    if isinstance(classes := score.get("classes"), Mapping):
        for name in ("accuracy", "macro_f1"):
            if name != score["metric"]:
                found[f"score.{name}"] = with_interval(classes.get(name), classes.get(f"{name}_interval"))
        found["ece"] = with_interval(classes.get("ece"), classes.get("ece_interval"))
    return found


def _distance(found: Mapping[str, Any]) -> dict[str, Number | None]:
    """How far it is from the fine-tune."""
    names = {"kl": "kl", "same_next_token": "agreement"}
    return {key: with_interval(found.get(name), None) for key, name in names.items()}


def _there(values: Mapping[str, Number | None]) -> dict[str, Number]:
    return {key: value for key, value in values.items() if value is not None}


def table_models(rows: Sequence[Mapping[str, Any]], *, source: str, metric: str) -> list[Model]:
    """The models of a run's table, for one that has no results beside it."""
    keys = ("loss", "disk_bytes", "peak_bytes", "tokens_per_s", "latency_s")
    return [
        Model(
            source,
            str(row["name"]),
            str(row["name"]),
            _there(
                {f"score.{metric}": with_interval(row.get("score"), row.get("interval"))}
                | {key: with_interval(row.get(key), None) for key in keys}
            ),
        )
        for row in rows
    ]
