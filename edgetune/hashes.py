"""SHA-256 of files, folders and values: what tells whether a stage is up to date and a bundle as it was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CARD = "README.md"
"""A folder's card: it tells of the folder, may be edited, and is no part of what the folder is."""


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(folder: Path, *, without: str | None = None) -> str:
    """SHA-256 over the relative names and bytes of all files under a folder, hex.

    Files called `without` are left out, and the folder's card.
    """
    digest = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file() and item.name != without):
        if path != folder / CARD:
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + hash_file(path).encode() + b"\0")
    return digest.hexdigest()


def hash_values(*values: Any) -> str:
    """SHA-256 of JSON-able values (dataclasses, paths and tuples included), hex; equal values give equal hashes."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
