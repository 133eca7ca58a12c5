"""Counters of energy: edgetune/bench/energy.py."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgetune.bench.decoding import measure_speed
from edgetune.bench.energy import NO_COUNTER, find_counter
from edgetune.bench.generation import columns
from edgetune.bench.settings import Settings
from edgetune.bench.table import plain


def zone(powercap: Path, name: str, micro_joules: int, wraps_at: int = 10_000_000) -> Path:
    """One zone as Linux shows it; its counter's file."""
    folder = powercap / name
    folder.mkdir(parents=True)
    (folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    (folder / "energy_uj").write_text(f"{micro_joules}\n")
    return folder / "energy_uj"


def test_a_machine_without_counters_has_none(tmp_path: Path) -> None:
    assert find_counter("cpu", powercap=tmp_path / "absent") is None
    assert find_counter("cpu", powercap=tmp_path) is None


def test_packages_are_added_up_and_their_parts_left_out(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 1_000_000), zone(tmp_path, "intel-rapl:1", 2_000_000)
    zone(tmp_path, "intel-rapl:0:0", 500_000)
    counter = find_counter("cpu", powercap=tmp_path)
    assert counter
    start = counter.read()
    first.write_text("3000000")
    second.write_text("2500000")
    assert counter.since(start) == pytest.approx(2.5)
    assert counter.source == "rapl"


def test_a_counter_that_began_anew_is_no_negative_energy(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", 9_000_000)
    counter = find_counter("cpu", powercap=tmp_path)
    assert counter
    start = counter.read()
    file.write_text("1000000")
    assert counter.since(start) == pytest.approx(2.0)


def test_a_counter_that_may_not_be_read_counts_as_none(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 1).unlink()
    assert find_counter("cpu", powercap=tmp_path) is None


def fake_nvml(millijoules: dict[int | str, int], *, lacks: str = "") -> types.SimpleNamespace:
    """NVIDIA's library as its binding shows it: milli-joules of each GPU, by number and by UUID; without one call."""

    def call(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            if name == lacks:
                raise RuntimeError("NVML: Not Supported")  # its own kind derives from Exception
            return answer(*arguments)

        return called

    calls: dict[str, Callable[..., Any]] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: millijoules[handle],
    }
    return types.SimpleNamespace(**{name: call(name, answer) for name, answer in calls.items()})


@pytest.mark.parametrize(
    ("visible", "gpu"), [(None, 0), ("", 0), ("1,0", 1), ("GPU-5a3c,GPU-77", "GPU-5a3c"), (" 1 ", 1)]
)
def test_a_gpu_is_asked_through_its_own_library(
    visible: str | None, gpu: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    millijoules: dict[int | str, int] = {0: 5_000, 1: 70_000, "GPU-5a3c": 900_000}
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(millijoules))
    counter = find_counter("cuda")
    assert counter
    start = counter.read()
    millijoules[gpu] += 3_500
    assert (counter.since(start), counter.source) == (pytest.approx(3.5), "nvml")


@pytest.mark.parametrize("lacks", ["nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_gpu_that_counts_nothing_has_no_counter(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml({0: 1}, lacks=lacks))
    assert find_counter("cuda") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_counter("cuda") is None


@dataclass
class Spender:
    """An engine that takes 2 joules for each token, and 1,000 to look at its weights."""

    spend: Callable[[float], None]
    device: str
    context_length: int = 64
    vocabulary: int = 10

    def token_seconds(self, _ids: Sequence[int], *, new_tokens: int) -> list[float]:
        self.spend(2.0 * new_tokens)
        return [0.01] * new_tokens

    def weights(self) -> dict[str, str]:
        self.spend(1000.0)
        return {"absent": "not counted"}


def measured(engine: Spender, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The columns of a bench of an engine, as JSON has them, out of two rounds of measure_speed."""
    monkeypatch.setattr("edgetune.bench.engine.loader", lambda _: lambda _: engine)
    asked = {"passes": 3, "prompts": [8], "decode": {"prompt": 8, "new": 16}}
    rounds = [{**measure_speed(asked, lambda _: None), "memory": {}} for _ in range(2)]
    settings = Settings(threads=1, repeats=2, prompts=(8,), contexts=())
    return json.loads(json.dumps(columns(rounds, settings, {})))


def shown(found: dict[str, Any]) -> str:
    target = {"name": "it", **found}
    return plain({"targets": [target], "reference": None, "training": [], "left_out": []})


def test_a_bench_measures_joules_a_token_of_a_processor_whose_counter_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wraps_at = 130_000_000
    files = [zone(tmp_path, f"intel-rapl:{number}", 100_000_000, wraps_at) for number in range(2)]

    def spend(joules: float) -> None:
        for file in files:
            file.write_text(f"{(int(file.read_text()) + int(joules * 5e5)) % wraps_at}\n")

    monkeypatch.setattr("edgetune.bench.decoding.find_counter", partial(find_counter, powercap=tmp_path))
    found = measured(Spender(spend, "cpu"), monkeypatch)
    energy = found["energy_j_per_token"]
    assert (energy["median"], energy["source"], energy["processes"]) == (pytest.approx(2.0), "rapl", 2)
    assert re.search(r"^energy a token +2 J ±0\.0%$", shown(found), re.MULTILINE)


def test_a_bench_measures_joules_a_token_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    millijoules: dict[int | str, int] = {0: 0}
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(millijoules))

    def spend(joules: float) -> None:
        millijoules[0] += int(joules * 1e3)

    energy = measured(Spender(spend, "cuda"), monkeypatch)["energy_j_per_token"]
    assert (energy["median"], energy["source"]) == (pytest.approx(2.0), "nvml")


def test_without_a_counter_a_bench_says_so_and_shows_no_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.bench.decoding.find_counter", partial(find_counter, powercap=tmp_path))
    found = measured(Spender(lambda _: None, "cpu"), monkeypatch)
    assert found["energy_j_per_token"] == {"absent": NO_COUNTER}
    assert re.search(r"^energy a token +-$", shown(found), re.MULTILINE)
    assert f"- energy a token: {NO_COUNTER}" in shown(found)
