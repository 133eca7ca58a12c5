"""Measured models from JSON: results of `edgetune evaluate` and of a run, reports of `edgetune bench`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgetune.report.facts import Measurement, Model, Number, number, with_interval

BENCH, BENCH_VERSION = "edgetune-bench", 1
"""What a report of `edgetune bench` calls itself, and the version of its keys that is read here."""
NOT_MEASURED = ("context_length", "weights", "rows", "trained_tokens", "wall_s", "torch_loaded")
"""Numbers of a target that say how it was measured or what it is."""
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
    }
    rows = number(score.get("rows"))
    return Model(source, stage, name, _there(found), rows=None if rows is None else int(rows))


def read_evaluation(values: Mapping[str, Any], *, name: str, path: str) -> Measurement:
    """What `edgetune evaluate` wrote as summary.json. Raises KeyError, ValueError where it is none."""
    models = [
        read_result(item, source=name, stage=item["target"]["kind"], name=item["target"]["name"])
        for item in values["results"]
    ]
    rows, provenance = values.get("source"), values.get("provenance")
    return Measurement(name, path, tuple(models), rows, provenance if isinstance(provenance, dict) else {})


def read_bench(values: Mapping[str, Any], *, name: str, path: str) -> Measurement:
    """What `edgetune bench` wrote. Raises KeyError, ValueError where it is none or of another version."""
    if values.get("version") != BENCH_VERSION:
        raise ValueError(f"version {values.get('version')!r:.20} of {BENCH}, this EdgeTune reads {BENCH_VERSION}")
    data = values.get("data") or {}
    models = [_target(item, source=name, metric=data.get("metric")) for item in values["targets"]]
    provenance = values.get("provenance")
    return Measurement(
        name, path, tuple(models), data.get("source"), provenance if isinstance(provenance, dict) else {}
    )


def titled(stage: str, precision: str) -> str:
    """What a stage of a run is called."""
    return TITLES.get(stage, stage).format(precision)


def _target(item: Mapping[str, Any], *, source: str, metric: str | None) -> Model:
    values: dict[str, Number] = {}
    absent: dict[str, str] = {}
    for key, found in flatten(item):
        if key.split(".")[0] in NOT_MEASURED:
            continue
        if key == "score" or key.startswith("score."):
            key = f"score.{metric}" if metric else "score"
        if isinstance(found, Number):
            values[key] = found
        else:
            absent[key] = found
    score = item.get("score")
    rows = number(score.get("rows")) if isinstance(score, Mapping) else None
    return Model(
        source, str(item.get("kind", "")), str(item["name"]), values, None if rows is None else int(rows), absent
    )


def flatten(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Number | str]]:
    """(key, number, or why there is none) of each quantity in nested tables, keys joined with dots.

    A quantity is a number, or a table with its "value" or "median" (and interval, or least and most), or with "absent".
    """
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        if not isinstance(value, Mapping):
            if (found := with_interval(value, None)) is not None:
                yield key, found
            continue
        if "absent" in value:
            yield key, str(value["absent"])
            continue
        point = next((value[part] for part in ("value", "median", "kl") if part in value), None)
        if point is None:
            yield from flatten(value, key)
        elif (
            found := with_interval(point, value.get("interval") or [value.get("least"), value.get("most")])
        ) is not None:
            yield key, found


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
