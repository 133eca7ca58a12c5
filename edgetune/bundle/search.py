"""`edgetune export-best`: sweep what an int4 bundle can be, measure the front, choose by the user's budget.

Nothing is retrained. Every candidate is scored in torch on the eval rows, with the device's numbers, in seconds. Those
that no other beats in both loss and bytes are built and measured as bundles; the best that fits [budget] is chosen, and
export repairs and verifies it as any other.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

from edgetune.bundle.generation import are_conversations, build_bundle, prompts_of, training_rows
from edgetune.data.prepare import examples
from edgetune.errors import RunError
from edgetune.files import write_json
from edgetune.model.weights import Place, find_tensors, read_tensor
from edgetune.progress import Progress, silent
from edgetune.provenance import provenance
from edgetune.quantize.folder import write_quantized
from edgetune.quantize.grid import QuantizedMatrix, quantize
from edgetune.quantize.hessian import Rows
from edgetune.quantize.matrices import calibrate, grids_of, joined_with
from edgetune.quantize.precisions import BLOCK_SIZES, STORED_SCALE_BYTES, grid_of
from edgetune.quantize.repair import eval_loss, load_for_loss
from edgetune.recipe import Recipe, parse_size
from edgetune.run_dir import RunDir
from edgetune.runtime.grid import Grid

INT8_SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of the groups of matrices, those that hurt most in int4: what is tried at 8 bits."""
MOST_BUILT = 10
"""Points of the front that are built and measured."""


@dataclass(frozen=True)
class Measured:
    """What a bundle is worth on the eval rows, and what it costs on this machine."""

    score: float | None
    tokens_per_s: float | None
    peak_bytes: int


Measure = Callable[[Path], Measured]


@dataclass(frozen=True)
class Point:
    """One candidate. Loss in nats per trained token on the eval rows, before repair."""

    block_size: int
    symmetric: bool
    head_bits: int
    calibrated: bool
    """GPTQ on training rows, or rounded to the nearest."""
    int8_layers: tuple[str, ...]
    loss: float
    size_bytes: int
    """Of all weights."""
    on_front: bool = False
    """No other has less loss in no more bytes."""
    score: float | None = None
    """As Measured, of the points that were built."""
    tokens_per_s: float | None = None
    peak_bytes: int | None = None

    @property
    def grid(self) -> Grid:
        """Of its layers."""
        return Grid(4, self.block_size, self.symmetric)

    @property
    def settings(self) -> dict[str, Any]:
        """What [export] must say for it."""
        found: dict[str, Any] = {name: getattr(self, name) for name in ("block_size", "symmetric", "head_bits")}
        found["int8_layers"] = self.int8_layers
        return {**found, "method": "gptq" if self.calibrated else "search"}

    @property
    def name(self) -> str:
        """In a few words."""
        parts = [f"block {self.block_size}", "symmetric" if self.symmetric else "asymmetric", f"head {self.head_bits}"]
        parts += ["GPTQ" if self.calibrated else "nearest"]
        return ", ".join(parts) + (f", {len(self.int8_layers)} in int8" if self.int8_layers else "")


@dataclass(frozen=True)
class SearchResult:
    """All points, the one that was chosen, and why."""

    points: tuple[Point, ...]
    chosen: Point
    reason: str


def search(recipe: Recipe, run_dir: RunDir, measure: Measure, *, progress: Progress | None = None) -> SearchResult:
    """Sweep block size, symmetry, method, head bits and int8 layers for the run's merged decoder.

    `measure` tells what a bundle folder scores and costs.

    Writes results/search.json. Memory: the integers of every calibrated grid (ten) and of every matrix rounded
    otherwise, about 0.6 bytes a weight and grid, and the model once on one of them. Raises RunError where nothing fits
    [budget] device_memory and min_tokens_per_s, with what came nearest.
    """
    rows = training_rows(run_dir.merged, recipe, run_dir.cache)
    sweep = _Sweep(run_dir.merged, recipe, rows, progress or silent)
    points = mark_front(list(sweep.points()))
    measured = _measured(recipe, run_dir, [point for point in points if point.on_front], sweep, measure)
    points = [measured.get(point, point) for point in points]
    chosen, reason = choose(points, recipe)
    values = {"reason": reason, "chosen": dataclasses.asdict(chosen), "points": [dataclasses.asdict(p) for p in points]}
    run_dir.results.mkdir(exist_ok=True)
    write_json(run_dir.results / "search.json", {**values, "provenance": provenance(recipe.train.seed)})
    return SearchResult(tuple(points), chosen, reason)


class _Sweep:
    """Candidates of one merged model; integers that many of them share are made once."""

    def __init__(self, merged: Path, recipe: Recipe, rows: Rows, tell: Progress) -> None:
        self.merged, self.recipe, self.rows, self.tell = merged, recipe, rows, tell
        self.places: Mapping[str, Place] = find_tensors(merged)
        self.cache: dict[tuple[str, Grid], QuantizedMatrix] = {}
        self.vector_bytes = 4 * sum(place.shape[0] for place in self.places.values() if len(place.shape) == 1)
        base = grid_of(recipe.export)
        assert base is not None
        self.base = dataclasses.replace(base, bits=4)
        self.grids = [Grid(4, size, symmetric) for size, symmetric in product(BLOCK_SIZES, (False, True))]
        tell({"stage": "search", "message": f"calibrating on {recipe.export.calibration_rows} rows"})
        found = calibrate(merged, self.grids, recipe, rows) if recipe.export.calibration_rows else []
        self.calibrated = dict(zip(self.grids, found, strict=True)) if found else {}

    def points(self) -> Iterator[Point]:
        """The grids first, then int8 layers on the smallest of those with an 8-bit head."""
        plain = []
        for calibrated in (True, False) if self.calibrated else (False,):
            for grid, head_bits in product(self.grids, (8, 4)):
                plain.append(self.point(grid, head_bits, calibrated))
                yield plain[-1]
        start = min(
            (point for point in plain if point.head_bits == 8), key=lambda point: (point.size_bytes, point.loss)
        )
        groups = self._sensitivities(start)
        for share in INT8_SHARES:
            kept = groups[: max(1, round(share * len(groups)))]
            layers = tuple(sorted(name for group in kept for name in group))
            yield self.point(start.grid, 8, start.calibrated, layers)

    def point(self, grid: Grid, head_bits: int, calibrated: bool, int8_layers: tuple[str, ...] = ()) -> Point:
        """A candidate, measured; `grid`: of its layers."""
        draft = Point(grid.block_size, grid.symmetric, head_bits, calibrated, int8_layers, loss=0.0, size_bytes=0)
        matrices = self.matrices(draft)
        loss = self._loss(matrices)
        point = dataclasses.replace(
            draft, loss=loss, size_bytes=self.vector_bytes + sum(map(stored_bytes, matrices.values()))
        )
        self.tell({"stage": "search", "message": f"{point.name}: loss {loss:.4f}, {point.size_bytes / 2**20:.2f} MiB"})
        return point

    def matrices(self, point: Point) -> dict[str, QuantizedMatrix]:
        """The point's matrices by the checkpoint's names."""
        size, symmetric, head_bits = point.block_size, point.symmetric, point.head_bits
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


def stored_bytes(matrix: QuantizedMatrix) -> int:
    """Bytes of a matrix in the file: integers, scales, zero points."""
    zeros = 0 if matrix.zero_points is None else matrix.zero_points.numel()
    return matrix.packed.numel() + STORED_SCALE_BYTES * matrix.scales.numel() + zeros


def mark_front(points: Sequence[Point]) -> list[Point]:
    """The points, with those marked that no other beats or equals in both loss and bytes."""

    def is_beaten(point: Point) -> bool:
        return any(
            other.loss <= point.loss
            and other.size_bytes <= point.size_bytes
            and (other.loss, other.size_bytes) != (point.loss, point.size_bytes)
            for other in points
        )

    return [dataclasses.replace(point, on_front=not is_beaten(point)) for point in points]


def _measured(
    recipe: Recipe, run_dir: RunDir, front: Sequence[Point], sweep: _Sweep, measure: Measure
) -> dict[Point, Point]:
    """Points of the front with what their bundles measure: MOST_BUILT of them, evenly by size, both ends among them."""
    is_chat = are_conversations(prompts_of(islice(examples(recipe, "train"), 8)))
    found = {}
    for point in evenly(sorted(front, key=lambda point: point.size_bytes), MOST_BUILT):
        sweep.tell({"stage": "search", "message": f"measuring as a bundle: {point.name}"})
        changed = dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, **point.settings))
        with tempfile.TemporaryDirectory(prefix=".search.", dir=run_dir.path) as folder:
            quantized = write_quantized(Path(folder) / "grid", sweep.matrices(point))
            built = Path(folder) / "bundle"
            built.mkdir()
            build_bundle(run_dir.merged, built, changed, is_chat=is_chat, quantized=quantized)
            found[point] = dataclasses.replace(point, **dataclasses.asdict(measure(built)))
    return found


def evenly(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many of the points, evenly from the first to the last."""
    if len(points) <= most:
        return list(points)
    return [points[round(number * (len(points) - 1) / (most - 1))] for number in range(most)]


def choose(points: Sequence[Point], recipe: Recipe) -> tuple[Point, str]:
    """The measured point with the least loss that fits [budget], and the reason in a sentence. Raises RunError."""
    memory, least = parse_size(recipe.budget.device_memory), recipe.budget.min_tokens_per_s
    built = [point for point in points if point.peak_bytes is not None]
    fitting = [point for point in built if fits(point, memory, least)]
    asked = [f"at most {recipe.budget.device_memory} on the device"] if memory else []
    asked += [f"at least {least:,.0f} tokens/s"] if least else []
    if not fitting:
        nearest = min(built, key=lambda point: point.peak_bytes or 0)
        raise RunError(
            f"no candidate has {' and '.join(asked)}: the smallest, {nearest.name}, takes "
            f"{(nearest.peak_bytes or 0) / 2**20:,.0f} MiB and writes {nearest.tokens_per_s or 0:,.0f} tokens/s",
            cure="raise budget.device_memory, lower budget.min_tokens_per_s, or fine-tune a smaller base",
        )
    best = min(fitting, key=lambda point: (point.loss, point.size_bytes))
    reason = f"least loss ({best.loss:.4f}) of {len(fitting)} measured candidates"
    return best, f"{reason} with {' and '.join(asked)}" if asked else reason


def fits(point: Point, memory: int | None, least: float | None) -> bool:
    """Whether a measured point keeps within a budget."""
    return (memory is None or (point.peak_bytes or 0) <= memory) and (
        least is None or (point.tokens_per_s or 0.0) >= least
    )
