"""A model on the grid, as a folder: what calibration and repair hand over to the export.

quantized.safetensors holds, for each matrix W of the model, W.packed, W.scales and W.zero_points in the bytes of
MatMulNBits, and under their own names the vectors that repair has changed; quantized.json says how it came about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from edgetune.errors import ModelError
from edgetune.files import atomic_folder, read_json, write_json
from edgetune.model.weights import Place, read_header, read_tensor
from edgetune.quantize.grid import QuantizedMatrix

TENSORS = "quantized.safetensors"
RECORD = "quantized.json"
PARTS = ("packed", "scales", "zero_points")
FACTS = ("bits", "block_size", "in_features")


class QuantizedFolder(Mapping[str, QuantizedMatrix]):
    """The folder's matrices by the names of the checkpoint's tensors; each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises RunError or ModelError if there is no such folder or it is damaged."""
        self.path = path
        self.record = read_json(path / RECORD)
        self._places = read_header(path / TENSORS)
        self._facts: Mapping[str, Any] = self.record.get("matrices", {})
        for name in self._facts:
            if f"{name}.packed" not in self._places:
                raise ModelError(f"{path / TENSORS}: {name} is missing", cure="export again")

    @property
    def vectors(self) -> dict[str, Place]:
        """Where the repaired vectors lie, by the names of the checkpoint's tensors."""
        return {name: place for name, place in self._places.items() if name.rpartition(".")[0] not in self._facts}

    def __getitem__(self, name: str) -> QuantizedMatrix:
        facts = self._facts[name]
        places = {part: self._places.get(f"{name}.{part}") for part in PARTS}
        tensors: dict[str, Any] = {part: place and read_tensor(place) for part, place in places.items()}
        return QuantizedMatrix(**tensors, **facts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)


def write_quantized(
    path: Path,
    matrices: Mapping[str, QuantizedMatrix],
    *,
    vectors: Mapping[str, Tensor] | None = None,
    record: Mapping[str, Any] | None = None,
) -> QuantizedFolder:
    """Write the folder, replacing what is there; `record` is added to quantized.json.

    Raises RunError for a full disk.
    """
    tensors = dict(vectors or {})
    for name, matrix in matrices.items():
        parts = {part: getattr(matrix, part) for part in PARTS}
        tensors |= {f"{name}.{part}": value.contiguous() for part, value in parts.items() if value is not None}
    facts = {name: {fact: getattr(matrix, fact) for fact in FACTS} for name, matrix in matrices.items()}
    with atomic_folder(path) as temporary:
        save_file(tensors, temporary / TENSORS)
        write_json(temporary / RECORD, {**(record or {}), "matrices": facts})
    return QuantizedFolder(path)
