"""Decoder graphs: onnxruntime-genai's model builder called as a library, its MatMuls put on our grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from edgetune.runtime.bundle import Grid

Precision = Literal["int4", "int8", "fp16", "fp32"]


def check_architecture(merged: Path) -> dict[str, Any]:
    """The folder's config.json, if its architecture can be exported. Raises ModelError with the list of those that can."""
    ...


def build_decoder(merged: Path, out: Path, *, precision: Precision, grid: Grid | None) -> None:
    """Write model.onnx, model.onnx.data, genai_config.json and the tokenizer's files of a Hugging Face folder into `out`.

    Linear layers, head and embedding are quantised by quant.grid where `grid` is given. Silent. Raises ModelError.
    """
    ...
