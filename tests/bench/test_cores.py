"""Threads and cores: edgetune/bench/cores.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgetune.bench import cores
from edgetune.errors import HardwareError

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins nothing")


def test_a_thread_goes_on_each_physical_core_before_two_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "siblings", lambda cpu: str(cpu % 4))
    assert cores.choose_cores(set(range(8)), 3) == [5, 6, 7]
    assert cores.choose_cores(set(range(8)), 5) == [3, 4, 5, 6, 7]


@needs_affinity
def test_processes_started_inside_are_pinned_and_all_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    code = "import os; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    with cores.pinned(1) as chosen:
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == f"{chosen} 1\n"
    assert chosen is not None
    assert len(chosen) == 1
    assert os.sched_getaffinity(0) == before
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


@needs_affinity
def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(HardwareError, match="lower --threads"), cores.pinned(100_000):
        pass
