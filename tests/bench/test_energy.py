"""Counters of energy: edgetune/bench/energy.py."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from edgetune.bench.energy import find_counter


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


def test_a_gpu_is_asked_through_its_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    joules = iter([5_000, 5_000, 8_500])
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda _: next(joules),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    counter = find_counter("cuda")
    assert counter
    assert counter.since(counter.read()) == pytest.approx(3.5)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_counter("cuda") is None
