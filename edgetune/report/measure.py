"""Measuring: bytes on disk, and peak memory of this process. Standard library only."""

from __future__ import annotations

from pathlib import Path


def disk_bytes(*paths: Path) -> int:
    """Bytes of files, and of all files under folders; links are followed, a file reached twice counts once."""
    ...


def peak_memory_bytes() -> int:
    """Highest resident memory of this process so far (VmHWM on Linux)."""
    ...
