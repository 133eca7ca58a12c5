"""A .gguf file, timed through llama.cpp. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.bench.engine import Weights
from edgetune.bench.noise import Value, absent
from edgetune.model.gguf import Gguf

HEAD, EMBEDDING = "output.weight", "token_embd.weight"


class GgufEngine:
    """A loaded .gguf file."""

    device = "cpu"

    def __init__(self, path: Path, *, threads: int) -> None:
        """Raises ModelError, MissingExtraError."""
        self._file = Gguf(path, threads=threads)
        self.context_length, self.vocabulary = self._file.context_length, self._file.vocabulary

    def token_seconds(self, ids: Sequence[int], *, new_tokens: int) -> list[float]:
        """Seconds of each new token."""
        return self._file.token_seconds(ids, new_tokens=new_tokens)

    def weights(self) -> Weights | Value:
        """Counted in the file, which the package gguf reads: matrices of the blocks, and the head, which is the
        embedding where the file has no other.
        """
        try:
            from gguf import GGUFReader
        except ModuleNotFoundError:
            return absent("gguf, which reads the file, is not installed")
        matrices = {item.name: item for item in GGUFReader(self._file.path).tensors if len(item.shape) == 2}
        head = matrices.get(HEAD, matrices.get(EMBEDDING))
        body = [item for name, item in matrices.items() if name not in (HEAD, EMBEDDING)]
        held = [*body, *([head] if head is not None else [])]
        return Weights(
            body=sum(int(item.n_elements) for item in body),
            head=0 if head is None else int(head.n_elements),
            bytes=sum(int(item.n_bytes) for item in held),
            has_head_for_each=False,
        )


def load(request: Mapping[str, Any]) -> GgufEngine:
    """The file of a request (see child.py)."""
    return GgufEngine(Path(request["path"]), threads=request["threads"])
