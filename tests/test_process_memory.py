"""Resident memory of this process: edgetune/process_memory.py. macOS and Windows are played, on whatever runs here."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from edgetune import process_memory
from edgetune.process_memory import peak_resident_bytes, reset_peak_resident, resident_bytes

MIB = 1024**2
is_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def run(code: str) -> None:
    """Run code in a fresh interpreter, whose memory nothing else has touched."""
    head = "from edgetune.process_memory import peak_resident_bytes, reset_peak_resident, resident_bytes\n"
    subprocess.run([sys.executable, "-c", head + code], check=True)


def test_this_process_has_a_peak() -> None:
    # Linux keeps both counters per thread and sums them loosely; they may be some pages apart.
    assert peak_resident_bytes() >= resident_bytes() - MIB > 0


def test_the_peak_stays_when_memory_is_given_back() -> None:
    run(
        "block = bytearray(b'x' * 64 * 1024**2); del block\n"
        "assert peak_resident_bytes() > resident_bytes() + 32 * 1024**2\n"
    )


@is_linux
def test_the_peak_can_be_measured_anew() -> None:
    reset_peak_resident()
    if peak_resident_bytes() > resident_bytes() + MIB:
        pytest.skip("this container forbids it")
    run(
        "block = bytearray(b'x' * 64 * 1024**2); del block\n"
        "before = peak_resident_bytes(); reset_peak_resident()\n"
        "assert peak_resident_bytes() < before - 32 * 1024**2\n"
    )


@pytest.mark.parametrize(("platform", "unit_bytes"), [("darwin", 1), ("freebsd14", 1024)])
def test_without_proc_getrusage_tells_the_peak_which_stands_for_both(
    platform: str, unit_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(process_memory, "_status_bytes", lambda _: None)
    monkeypatch.setattr(process_memory, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=5000))
    assert (peak_resident_bytes(), resident_bytes()) == (5000 * unit_bytes, 5000 * unit_bytes)


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="offsets of 64-bit Windows")
def test_on_windows_both_come_from_the_counters_at_their_documented_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(_process: object, counters: object, size: int) -> int:
        """K32GetProcessMemoryInfo: PeakWorkingSetSize at byte 8, WorkingSetSize at byte 16, 72 bytes in all."""
        memory = (ctypes.c_char * size).from_address(ctypes.addressof(counters._obj))  # type: ignore[attr-defined]
        assert (size, memory[:4]) == (72, (72).to_bytes(4, "little"))
        memory[8:24] = (7 * MIB).to_bytes(8, "little") + (3 * MIB).to_bytes(8, "little")
        return 1

    library = SimpleNamespace(K32GetProcessMemoryInfo=tell)
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: library, raising=False)
    monkeypatch.setattr(process_memory, "sys", SimpleNamespace(platform="win32"))
    assert (peak_resident_bytes(), resident_bytes()) == (7 * MIB, 3 * MIB)
