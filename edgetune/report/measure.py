"""Measuring: bytes on disk, and the memory of this process. Standard library only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection
from pathlib import Path


def disk_bytes(*paths: Path, suffixes: Collection[str] | None = None) -> int:
    """Bytes of files, and of all files under folders; links are followed, a file reached twice counts once.

    With `suffixes`, e.g. {".json"}, other files do not count.
    """
    sizes: dict[tuple[int, int] | str, int] = {}
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and (suffixes is None or file.suffix in suffixes):
                facts = file.stat()
                sizes[(facts.st_dev, facts.st_ino) if facts.st_ino else str(file.resolve())] = facts.st_size
    return sum(sizes.values())


def peak_memory_bytes() -> int:
    """Highest resident memory of this process so far: VmHWM on Linux, ru_maxrss on macOS; 0 where neither is known."""
    if (peak := _status_bytes("VmHWM")) is not None:
        return peak
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0


def resident_bytes() -> int:
    """Resident memory of this process now: VmRSS on Linux, elsewhere 0."""
    return _status_bytes("VmRSS") or 0


def _status_bytes(key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return None
