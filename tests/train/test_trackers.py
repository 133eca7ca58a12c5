"""train/trackers.py against the real libraries: what they wrote is read back, and is what events.jsonl has."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetune.run_dir import RunDir
from edgetune.train.events import read_events
from edgetune.train.loop import train

METRICS = ("loss", "learning_rate", "tokens_per_s", "memory_bytes", "eval_loss", "train_loss")


def logged(run_dir: RunDir) -> dict[str, dict[int, float]]:
    """Metric -> step -> its last value in events.jsonl."""
    found: dict[str, dict[int, float]] = {}
    for event in read_events(run_dir.events):
        for name in METRICS:
            if name in event:
                found.setdefault(name, {})[event["step"]] = event[name]
    return found


def records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length, its checksum, the bytes, their checksum."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield data[place + 12 : place + 12 + length]
        place += 12 + length + 4


def test_tensorboard_s_files_hold_every_metric_of_every_step(make_recipe: Any, tmp_path: Path) -> None:
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    run_dir = RunDir(tmp_path / "r")
    train(make_recipe('train.trackers=["tensorboard"]', "train.max_steps=2"), run_dir)
    found: dict[str, dict[int, float]] = {}
    for file in (run_dir.path / "edgetune").rglob("events.out.tfevents.*"):
        for record in records(file):
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                if value.tag in METRICS:
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    wanted = logged(run_dir)
    assert set(wanted) == set(METRICS)
    assert {name: set(steps) for name, steps in found.items()} == {name: set(steps) for name, steps in wanted.items()}
    for name, steps in wanted.items():
        assert found[name] == pytest.approx(steps, rel=1e-6), name


def test_mlflow_s_store_holds_every_metric_of_every_step(
    make_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is too much to install for one test")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_dir = RunDir(tmp_path / "r")
    recipe = make_recipe('train.trackers=["mlflow"]', "train.max_steps=2")
    train(recipe, run_dir)
    client = mlflow.MlflowClient()
    (experiment,) = [item for item in client.search_experiments() if item.name == "edgetune"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["base"] == recipe.model.base
    for name, steps in logged(run_dir).items():
        found = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert found == pytest.approx(steps), name
