"""Measuring: bytes on disk. Standard library only."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgetune.hashes import CARD


def disk_bytes(*paths: Path, suffixes: Collection[str] | None = None) -> int:
    """Bytes of files, and of all files under folders; links are followed, a file reached twice counts once.

    With `suffixes`, e.g. {".json"}, other files do not count; a folder's card never does.
    """
    sizes: dict[tuple[int, int] | str, int] = {}
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and file != path / CARD and (suffixes is None or file.suffix in suffixes):
                facts = file.stat()
                sizes[(facts.st_dev, facts.st_ino) if facts.st_ino else str(file.resolve())] = facts.st_size
    return sum(sizes.values())
