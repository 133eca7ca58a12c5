"""The candidates of a merged classifier, for `edgetune export-best`: see bundle/sweep.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch

from edgetune.bundle.candidates import Point, as_asked, grids, stored_bytes, told
from edgetune.bundle.classification import build_classifier_bundle, calibrated, draw_texts, token_batches
from edgetune.data.prepare import examples, longest_row, prepare
from edgetune.model.base import load_merged, load_tokenizer, padding_id
from edgetune.model.classifier import load_classifier
from edgetune.progress import Progress
from edgetune.quantize.classification import dequantized, quantize_classifier
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import write_manifest
from edgetune.train.classification import Classification


class ClassificationSweep:
    """Block size, symmetry and method; an encoder's layers all have 4 bits, its head none."""

    def __init__(self, recipe: Recipe, run_dir: RunDir, tell: Progress) -> None:
        self.merged, self.recipe, self.tell, self.cache = run_dir.merged, recipe, tell, run_dir.cache
        tokenizer = load_tokenizer(self.merged)
        length = longest_row(recipe, self.merged, tokenizer)
        prepared = prepare(recipe, tokenizer, max_length=length, cache=run_dir.cache)
        self.task = Classification(recipe, prepared, padding_id(tokenizer))
        self.classifier = load_classifier(load_merged(self.merged), self.merged)
        count = recipe.export.calibration_rows
        self.texts = draw_texts(examples(recipe, "train"), count, seed=recipe.train.seed)
        self.batches = token_batches(tokenizer, self.texts, max_length=self.classifier.spec.max_length)

    def points(self) -> Iterator[Point]:
        """Each grid, with both methods."""
        for is_calibrated, grid in product((True, False) if self.batches else (False,), grids()):
            method: Any = "gptq" if is_calibrated else "search"
            matrices = quantize_classifier(self.classifier, grid, self.batches, method=method)
            with torch.no_grad():
                total, count = self.task.evaluate(dequantized(self.classifier, matrices))
            point = Point(
                grid.block_size, grid.symmetric, None, is_calibrated, (), total / max(count, 1), self._bytes(matrices)
            )
            yield told(self.tell, point)

    def build(self, point: Point, folder: Path) -> None:
        """As Sweep."""
        self._write(point, folder)

    def finish(self, point: Point, folder: Path) -> bool:
        """As Sweep: repaired."""
        if self.recipe.export.repair_steps:
            self._write(point, folder, cache=self.cache)
        return bool(self.recipe.export.repair_steps)

    def _write(self, point: Point, folder: Path, *, cache: Path | None = None) -> None:
        changed, texts = as_asked(self.recipe, point), self.texts if point.calibrated else []
        built = build_classifier_bundle(self.merged, folder, changed, texts, cache=cache, progress=self.tell)
        write_manifest(calibrated(built.bundle, changed))

    def _bytes(self, matrices: Mapping[str, QuantizedMatrix]) -> int:
        floats = (
            4 * value.numel()
            for name, value in self.classifier.state_dict().items()
            if name.removesuffix(".weight") not in matrices
        )
        return sum(map(stored_bytes, matrices.values())) + sum(floats)
