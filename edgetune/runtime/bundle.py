"""The bundle: the folder that goes to the device, and edgetune.json in it, which says what the folder is and holds.

Export writes it (`write_manifest`), everything that runs a bundle opens it (`open_bundle`). A decoder bundle is at the
same time a folder that plain onnxruntime-genai opens: model.onnx (+ .data), genai_config.json, tokenizer.json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from edgetune.errors import BundleError, RunError
from edgetune.run_dir import hash_file, write_json

FORMAT_VERSION = 1
MANIFEST = "edgetune.json"
GENAI_CONFIG = "genai_config.json"
TOKENIZER = "tokenizer.json"
TASKS = ("causal-lm",)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Grid:
    """How the weights are rounded, in the words of MatMulNBits."""

    bits: int
    block_size: int
    symmetric: bool
    accuracy_level: int
    head_bits: int


@dataclass(frozen=True)
class ChatFormat:
    """How messages become text and when an answer ends."""

    template: str | None
    """Jinja chat template; None where the model was tuned on plain text."""
    bos_token: str | None
    """What the template sees as bos_token."""
    eos_token: str | None
    """What the template sees as eos_token."""
    bos_id: int | None
    """Put before text that is not rendered by the template; None where training put nothing there."""
    eos_ids: tuple[int, ...]
    """Generation stops at any of these."""
    system: str | None = None
    """System message put before messages that have none."""


@dataclass(frozen=True)
class FileRecord:
    """What a file of the bundle must be."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """A bundle and what edgetune.json says about it."""

    path: Path
    name: str
    precision: str
    """int4, int8, fp16 or fp32."""
    grid: Grid | None
    """None for fp16 and fp32."""
    chat: ChatFormat
    context_length: int
    """Longest text, prompt and answer together, in tokens."""
    task: str = "causal-lm"
    files: Mapping[str, FileRecord] = field(default=_NOTHING)  # type: ignore[assignment]
    """Relative name, with /, -> record; every file but edgetune.json."""
    provenance: Mapping[str, Any] = field(default=_NOTHING)
    """Where it comes from: base, adapter, recipe hash, versions."""
    verified: Mapping[str, Any] = field(default=_NOTHING)
    """Outcome of the verification: {"passed": bool, "checks": [...], "scores": {...}}; empty when there was none."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, edgetune.json aside."""
        return sum(record.size_bytes for record in self.files.values())


def open_bundle(path: Path | str) -> Bundle:
    """The bundle in a folder, after checking its version and that each file is there with its size.

    Reads edgetune.json only, so it is cheap; `check_hashes` reads every byte. Raises BundleError.
    """
    ...


def check_hashes(bundle: Bundle) -> None:
    """Read every file and compare its SHA-256. Raises BundleError that names the files that differ."""
    ...


def write_manifest(bundle: Bundle) -> Bundle:
    """Write edgetune.json into `bundle.path`, atomically; the bundle with its file records.

    Without `files` every file in the folder is measured and hashed; with `files` they stand as they are, which is how a
    verification is added to a bundle without reading it again. Raises BundleError, RunError when the disk says no.
    """
    ...
