"""The sweep of `edgetune export-best`: every candidate of a merged model, scored in torch with the device's numbers."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any, Protocol

import torch

from edgetune.bundle.candidates import Point
from edgetune.bundle.classification import build_classifier_bundle, calibrated, draw_texts, token_batches
from edgetune.bundle.generation import are_conversations, build_bundle, prompts_of, training_rows
from edgetune.data.prepare import examples, longest_row, prepare
from edgetune.model.base import load_merged, load_tokenizer, padding_id
from edgetune.model.classifier import load_classifier
from edgetune.model.weights import Place, find_tensors, read_tensor
from edgetune.progress import Progress
from edgetune.quantize.classification import dequantized, quantize_classifier
from edgetune.quantize.decoder import quantize_decoder
from edgetune.quantize.folder import QuantizedFolder, write_quantized
from edgetune.quantize.grid import QuantizedMatrix, quantize
from edgetune.quantize.matrices import calibrate, grids_of, joined_with
from edgetune.quantize.precisions import BLOCK_SIZES, STORED_SCALE_BYTES, grid_of
from edgetune.quantize.repair import eval_loss, load_for_loss
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import write_manifest
from edgetune.runtime.grid import Grid
from edgetune.train.classification import Classification

INT8_SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of the groups of matrices, those that hurt most in int4: what is tried at 8 bits."""


class Sweep(Protocol):
    """The candidates of one merged model."""

    def points(self) -> Iterator[Point]:
        """Each of them, its loss and bytes measured."""
        ...

    def build(self, point: Point, folder: Path) -> None:
        """The bundle of a point in an empty folder, not repaired and not verified."""
        ...

    def finish(self, point: Point, folder: Path) -> bool:
        """The bundle as `edgetune export` will make it, not verified; whether it is another than `build` makes."""
        ...


def sweep_of(recipe: Recipe, run_dir: RunDir, tell: Progress) -> Sweep:
    """That of the run's merged model."""
    kind = ClassifierSweep if recipe.model.task == "classification" else DecoderSweep
    return kind(recipe, run_dir, tell)


def _grids() -> list[Grid]:
    return [Grid(4, size, symmetric) for size, symmetric in product(BLOCK_SIZES, (False, True))]


def as_asked(recipe: Recipe, point: Point) -> Recipe:
    """The recipe with a point's settings in [export]."""
    return dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, **point.settings))


class DecoderSweep:
    """Block size, symmetry, method, head bits and int8 layers; integers that many candidates share are made once."""

    def __init__(self, recipe: Recipe, run_dir: RunDir, tell: Progress) -> None:
        self.merged, self.recipe, self.tell = run_dir.merged, recipe, tell
        self.rows = training_rows(self.merged, recipe, run_dir.cache)
        self.places: Mapping[str, Place] = find_tensors(self.merged)
        self.cache: dict[tuple[str, Grid], QuantizedMatrix] = {}
        self.vector_bytes = 4 * sum(place.shape[0] for place in self.places.values() if len(place.shape) == 1)
        self.is_chat = are_conversations(prompts_of(islice(examples(recipe, "train"), 8)))
        base = grid_of(recipe.export)
        assert base is not None
        self.base = dataclasses.replace(base, bits=4)
        self.grids = _grids()
        tell({"stage": "search", "message": f"calibrating on {recipe.export.calibration_rows} rows"})
        found = calibrate(self.merged, self.grids, recipe, self.rows) if recipe.export.calibration_rows else []
        self.calibrated = dict(zip(self.grids, found, strict=True)) if found else {}

    def points(self) -> Iterator[Point]:
        """The grids first, then int8 layers: on the smallest with an 8-bit head, and on the recipe's own grid."""
        plain = []
        for calibrated_too in (True, False) if self.calibrated else (False,):
            for grid, head_bits in product(self.grids, (8, 4)):
                plain.append(self.point(grid, head_bits, calibrated_too))
                yield plain[-1]
        table, is_calibrated = self.recipe.export, bool(self.calibrated)
        smallest = min(
            (point for point in plain if point.head_bits == 8), key=lambda point: (point.size_bytes, point.loss)
        )
        own = Grid(4, table.block_size, table.symmetric)
        if table.int8_layers:
            yield self.point(own, table.head_bits, is_calibrated, table.int8_layers)
        groups = self._sensitivities(smallest)
        starts = dict.fromkeys([(smallest.grid, smallest.calibrated), (own, is_calibrated)])
        for (grid, calibrated_too), share in product(starts, INT8_SHARES):
            kept = groups[: max(1, round(share * len(groups)))]
            layers = tuple(sorted(name for group in kept for name in group))
            yield self.point(grid, 8, calibrated_too, layers)

    def point(self, grid: Grid, head_bits: int, is_calibrated: bool, int8_layers: tuple[str, ...] = ()) -> Point:
        """A candidate, measured; `grid`: of its layers."""
        draft = Point(grid.block_size, grid.symmetric, head_bits, is_calibrated, int8_layers, loss=0.0, size_bytes=0)
        matrices = self.matrices(draft)
        size_bytes = self.vector_bytes + sum(map(stored_bytes, matrices.values()))
        return told(self.tell, dataclasses.replace(draft, loss=self._loss(matrices), size_bytes=size_bytes))

    def build(self, point: Point, folder: Path) -> None:
        """As Sweep."""
        with tempfile.TemporaryDirectory(prefix=".grid.", dir=folder.parent) as work:
            self._write(point, folder, write_quantized(Path(work) / "grid", self.matrices(point)))

    def finish(self, point: Point, folder: Path) -> bool:
        """As Sweep: repaired."""
        changed = as_asked(self.recipe, point)
        if not changed.export.repair_steps:
            return False
        grid = grid_of(changed.export)
        assert grid is not None
        with tempfile.TemporaryDirectory(prefix=".grid.", dir=folder.parent) as work:
            made = quantize_decoder(self.merged, Path(work) / "grid", changed, grid, rows=self.rows, progress=self.tell)
            self._write(point, folder, made)
        return True

    def _write(self, point: Point, folder: Path, quantized: QuantizedFolder) -> None:
        changed = as_asked(self.recipe, point)
        build_bundle(self.merged, folder, changed, is_chat=self.is_chat, quantized=quantized)

    def matrices(self, point: Point) -> dict[str, QuantizedMatrix]:
        """The point's matrices by the checkpoint's names."""
        size, symmetric, head_bits = point.block_size, point.symmetric, point.head_bits
        assert head_bits is not None
        grid = dataclasses.replace(self.base, block_size=size, symmetric=symmetric, head_bits=head_bits)
        ready = self.calibrated.get(point.grid, {}) if point.calibrated else {}
        found = {}
        for name, own in grids_of(self.places, grid, point.int8_layers).items():
            found[name] = ready[name] if own.bits == 4 and name in ready else self._rounded(name, own)
        return found

    def _loss(self, matrices: Mapping[str, QuantizedMatrix]) -> float:
        rounds = self.recipe.export.accuracy_level == 4
        model = load_for_loss(self.merged, matrices, rounds_inputs=rounds)
        return eval_loss(model, self.rows.prepared, self.recipe, self.rows.pad_id)

    def _sensitivities(self, point: Point) -> list[list[str]]:
        """Groups of matrices that the graph joins, most loss won back a byte first, each measured alone in int8."""
        matrices, wider = self.matrices(point), point.grid.with_bits(8)
        groups = {tuple(joined_with(name, matrices)) for name in matrices if name.startswith("model.layers.")}
        gains = []
        for group in sorted(groups):
            wide = {name: self._rounded(name, wider) for name in group}
            bytes_more = sum(stored_bytes(wide[name]) - stored_bytes(matrices[name]) for name in group)
            gains.append(((point.loss - self._loss({**matrices, **wide})) / bytes_more, list(group)))
        return [group for _, group in sorted(gains, key=lambda pair: -pair[0])]

    def _rounded(self, name: str, grid: Grid) -> QuantizedMatrix:
        if (name, grid) not in self.cache:
            self.cache[name, grid] = quantize(read_tensor(self.places[name]), grid)
        return self.cache[name, grid]


class ClassifierSweep:
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
        for is_calibrated, grid in product((True, False) if self.batches else (False,), _grids()):
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

    def _write(self, point: Point, folder: Path, *, cache: Path | None = None) -> None:
        changed, texts = as_asked(self.recipe, point), self.texts if point.calibrated else []
        built = build_classifier_bundle(self.merged, folder, changed, texts, cache=cache, progress=self.tell)
        write_manifest(calibrated(built.bundle, changed))

    def finish(self, point: Point, folder: Path) -> bool:
        """As Sweep: repaired."""
        if self.recipe.export.repair_steps:
            self._write(point, folder, cache=self.cache)
        return bool(self.recipe.export.repair_steps)

    def _bytes(self, matrices: Mapping[str, QuantizedMatrix]) -> int:
        floats = (
            4 * value.numel()
            for name, value in self.classifier.state_dict().items()
            if name.removesuffix(".weight") not in matrices
        )
        return sum(map(stored_bytes, matrices.values())) + sum(floats)


def told(tell: Progress, point: Point) -> Point:
    """The point, after a line about it."""
    text = f"{point.name}: loss {point.loss:.4f}, {point.size_bytes / 2**20:.2f} MiB"
    tell({"stage": "search", "message": text})
    return point


def stored_bytes(matrix: QuantizedMatrix) -> int:
    """Bytes of a matrix in the file: integers, scales, zero points."""
    zeros = 0 if matrix.zero_points is None else matrix.zero_points.numel()
    return matrix.packed.numel() + STORED_SCALE_BYTES * matrix.scales.numel() + zeros
