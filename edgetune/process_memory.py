"""Resident memory of this process, as the operating system counts it: now and at the peak. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path


def peak_resident_bytes() -> int:
    """Highest resident memory since the process began, or since `reset_peak_resident` where that works (Linux)."""
    if sys.platform == "win32":
        return _windows_counters().peak
    peak = _status_bytes("VmHWM")
    return _usage_bytes() if peak is None else peak


def resident_bytes() -> int:
    """Resident memory now. Where the system tells only the peak (macOS) it is the peak, which is no less."""
    if sys.platform == "win32":
        return _windows_counters().now
    now = _status_bytes("VmRSS")
    return _usage_bytes() if now is None else now


def reset_peak_resident() -> bool:
    """Start measuring the peak anew; whether that worked. Not Linux, or a container that forbids it: it stays that of
    the whole life.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return True
    return False


def _status_bytes(key: str) -> int | None:
    """A line of /proc/self/status, given there in KiB; None where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return None


def _usage_bytes() -> int:
    """The peak that getrusage knows: bytes on macOS, KiB on other Unixes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows' psapi.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak", ctypes.c_size_t),
        ("now", ctypes.c_size_t),
        ("pools_and_pagefile", ctypes.c_size_t * 6),
    )


def _windows_counters() -> _Counters:
    """PeakWorkingSetSize and WorkingSetSize of this process, in bytes."""
    counters = _Counters(size=ctypes.sizeof(_Counters))
    this_process = ctypes.c_void_p(-1)  # what GetCurrentProcess returns
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    if not kernel32.K32GetProcessMemoryInfo(this_process, ctypes.byref(counters), counters.size):
        raise ctypes.WinError(ctypes.get_last_error())  # type: ignore[attr-defined]
    return counters
