"""The plan stage: a recipe held against the real files, all problems at once, and what its training will need.

Reads config.json, headers, tokenizer and the first rows; loads no weights. `edgetune plan` shows it,
`edgetune run` begins with it.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.errors import DataError, EdgeTuneError, OutOfMemoryError, RecipeError
from edgetune.launch import launched
from edgetune.recipe import Recipe, parse_size

if TYPE_CHECKING:
    from edgetune.model.fit import Change
    from edgetune.model.memory import Estimate
    from edgetune.model.on_device import OnDevice

CHECKED_ROWS = 200
"""Rows of each source that are read, rendered and tokenised."""
COUNTED_ROWS = 100_000
"""Training rows that are counted at most, to tell how long a training takes."""


@dataclass(frozen=True)
class Plan:
    """A recipe that can be run: its estimate, and counts over the first rows of each source."""

    recipe: Recipe
    """With a value for each "auto" that memory decides."""
    estimate: Estimate
    rows: Mapping[str, Mapping[str, int]]
    allowed_bytes: int | None
    """[budget] gpu_memory where there is one, else memory; on a CPU this process's part of it."""
    device: str
    """What is planned for: "cuda" where there is a gpu_memory, else this machine's."""
    unquantized_bytes: int | None
    """Peak with the base as it is, where that fits too and the recipe has it in 4 bits."""
    labels: int
    on_device: OnDevice
    """The bundle that this becomes."""

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the budget."""
        return self.allowed_bytes is None or self.estimate.peak_bytes <= self.allowed_bytes


def plan(recipe: Recipe) -> Plan:
    """Check base, architecture, adapter and rows, then estimate.

    Raises RecipeError with all problems, or the only one as it is.
    """
    from edgetune.model.device import device
    from edgetune.model.fit import settle, with_values
    from edgetune.model.memory import room_bytes
    from edgetune.model.on_device import expect_on_device

    rows, labels = _check(recipe)
    budget = recipe.budget
    kind = "cuda" if budget.gpu_memory else device().type
    allowed = parse_size(budget.gpu_memory or budget.memory)
    if allowed is not None and kind != "cuda":
        allowed //= launched().local_count
    recipe = settle(
        recipe,
        room_bytes(recipe, kind),
        lambda asked: _estimate(asked, rows, labels, kind).peak_bytes,
        is_gpu=kind == "cuda",
    )
    needs = _estimate(recipe, rows, labels, kind)
    plain = None
    if allowed is not None and recipe.model.quantization == "nf4":
        plain = _estimate(with_values(recipe, {"model.quantization": "none"}), rows, labels, kind).peak_bytes
        plain = plain if plain <= allowed else None
    return Plan(recipe, needs, rows, allowed, kind, plain, labels, expect_on_device(recipe))


def fitted(recipe: Recipe, planned: Plan) -> tuple[Recipe, list[Change]]:
    """The recipe changed as little as its budget asks for, and the changes; "auto" in it is decided.

    Raises OutOfMemoryError, RecipeError.
    """
    from edgetune.model.fit import fit
    from edgetune.model.memory import room_bytes

    if planned.allowed_bytes is None:
        raise RecipeError(
            f"{recipe.name}: there is no budget to fit", cure="give --gpu-memory, or set budget.gpu_memory or memory"
        )
    return fit(
        planned.recipe,
        room_bytes(recipe, planned.device),
        lambda changed: _estimate(changed, planned.rows, planned.labels, planned.device).peak_bytes,
        is_gpu=planned.device == "cuda",
    )


@dataclass(frozen=True)
class Duration:
    """How long training will take here, about."""

    rows: int
    is_all: bool
    """False: there are more rows than were counted, and it takes longer."""
    tokens: int
    """Over all epochs."""
    steps: int
    tokens_per_s: float

    @property
    def seconds(self) -> float:
        """Of training steps; evaluations come on top."""
        return self.tokens / self.tokens_per_s


def duration(planned: Plan) -> Duration | None:
    """Count the training rows and measure this machine for a moment; None where another device is planned for."""
    from edgetune.data.prepare import examples
    from edgetune.model.device import device
    from edgetune.model.duration import training_tokens_per_s

    recipe, counts = planned.recipe, planned.rows["train"]
    if planned.device != device().type:
        return None
    table, most = recipe.train, min(recipe.data.max_train_rows or COUNTED_ROWS, COUNTED_ROWS)
    rows = sum(1 for _ in itertools.islice(examples(recipe, "train"), most))
    is_all = rows < COUNTED_ROWS
    rows *= 1 + recipe.data.swapped_copies
    length = min(counts["tokens"] / counts["rows"], recipe.data.max_seq_len)
    is_packed = recipe.data.packing and not recipe.is_classifier
    a_sequence = max(1.0, recipe.data.max_seq_len / length) if is_packed else 1.0
    a_step = recipe.batch_size * table.gradient_accumulation_steps * a_sequence
    steps = min(math.ceil(rows * table.epochs / a_step), table.max_steps or sys.maxsize)
    speed = training_tokens_per_s(
        recipe,
        trained_share=counts.get("trained_tokens", 0) / max(1, counts["tokens"]),
        sample_tokens=round(length),
    )
    return Duration(rows, is_all, round(min(rows * table.epochs, steps * a_step) * length), steps, speed)


def _estimate(recipe: Recipe, rows: Mapping[str, Mapping[str, int]], labels: int, kind: str) -> Estimate:
    from edgetune.model.memory import estimate

    counts = rows["train"]
    share = counts.get("trained_tokens", 0) / max(1, counts["tokens"])
    longest = min(counts.get("longest", recipe.data.max_seq_len), recipe.data.max_seq_len)
    return estimate(recipe, on=kind, trained_share=share, labels=labels, sample_tokens=longest)


def refuse_over_budget(recipe: Recipe, planned: Plan) -> None:
    """Raises OutOfMemoryError if training needs more than its budget."""
    if not planned.fits:
        key = "gpu_memory" if recipe.budget.gpu_memory else "memory"
        sharing = launched().local_count if planned.device != "cuda" else 1
        each = f" in each of {sharing} processes" if sharing > 1 else ""
        raise OutOfMemoryError(
            f"{recipe.name}: training needs about {planned.estimate.peak_bytes / 1024**2:,.1f} MiB{each}, budget.{key}"
            f" is {getattr(recipe.budget, key)}",
            cure="`edgetune plan RECIPE --fit NEW.toml` writes a recipe that fits; or raise the budget",
        )


def _check(recipe: Recipe) -> tuple[dict[str, dict[str, int]], int]:
    """What the first rows of each source are, and how many labels a classifier's training rows have.

    Raises RecipeError with all problems, or the only one there is.
    """
    from edgetune.data.folds import deal
    from edgetune.data.labelled import check_labels
    from edgetune.export.architecture import check_architecture
    from edgetune.export.beyond import check_computable
    from edgetune.export.bundle import chat_format
    from edgetune.export.encoder import check_libraries
    from edgetune.export.quantize import check_int8_layers
    from edgetune.lora.adapter import check_adapter
    from edgetune.model.base import check_base, load_tokenizer, resolve_base
    from edgetune.model.classifier import check_pooling

    problems: list[EdgeTuneError] = []

    def attempt(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except EdgeTuneError as error:
            if str(error) not in map(str, problems):
                problems.append(error)
            return None

    model, adapter = recipe.model, recipe.lora.init_from
    base = attempt(lambda: resolve_base(model.base, model.revision, trust_remote_code=model.trust_remote_code))
    tokenizer = None
    if base is not None:
        is_sound = attempt(lambda: check_base(base, trust_remote_code=model.trust_remote_code, task=model.task))
        if is_sound:  # before the training, not after it
            attempt(check_libraries if recipe.is_classifier else lambda: check_architecture(base))
            if not recipe.is_classifier and not problems:
                attempt(lambda: check_computable(base, max_length=recipe.export.max_length))
            attempt(lambda: check_int8_layers(base, recipe))
            if recipe.is_classifier:
                attempt(lambda: check_pooling(base, recipe.classify.pooling))
        tokenizer = attempt(lambda: load_tokenizer(base, trust_remote_code=model.trust_remote_code))
        if tokenizer is not None and not recipe.is_classifier:
            attempt(lambda: chat_format(tokenizer, base, is_chat=True, system=None))
        if adapter is not None:
            attempt(lambda: check_adapter(Path(adapter).expanduser(), base))
    labels = (attempt(lambda: check_labels(recipe)) or ()) if recipe.is_classifier else ()
    rows = {}
    for which in ("train", "eval", "test"):
        if which == "train" or getattr(recipe.data, which) is not None:
            rows[which] = attempt(functools.partial(_look_at_rows, recipe, which, tokenizer))
    if rows["train"] is not None and not recipe.is_classifier:
        attempt(lambda: _look_at_references(recipe))
    if recipe.evaluate.folds and rows["train"] is not None:
        attempt(lambda: deal(recipe))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [str(problem) for problem in problems]
        raise RecipeError("\n".join([f"{len(lines)} problems", *lines]), problems=lines)
    return rows, len(labels)


def _look_at_references(recipe: Recipe) -> None:
    """Raises DataError for a row of those that will be scored, the first ones, that [evaluate] metric cannot score."""
    from edgetune.data.prepare import examples
    from edgetune.evaluate.rows import check_reference

    metric: Any = recipe.evaluate.metric
    for example in itertools.islice(examples(recipe, "test"), COUNTED_ROWS):
        answer = example.messages[-1].content if example.messages else None
        check_reference(example.messages[:-1], answer, example.place, metric)


def _look_at_rows(recipe: Recipe, which: Any, tokenizer: Any) -> dict[str, int]:
    """Counts over the first rows of a source: rows, tokens, trained tokens or labels, rows that are too long."""
    from edgetune.data.chat import ensure_chat_template
    from edgetune.data.encode import check_tokens, encode_batch, may_exceed
    from edgetune.data.prepare import examples

    stream = examples(recipe, which)
    first = list(itertools.islice(stream, CHECKED_ROWS))
    if not first:
        raise DataError(f"data.{which}: holds no rows")
    if tokenizer is None:
        return {"rows": len(first)}
    if recipe.is_classifier:
        texts = tokenizer([example.text or "" for example in first], verbose=False)["input_ids"]
        for example, ids in zip(first, texts, strict=True):
            check_tokens(ids, tokenizer, example.place)
        lengths = [len(ids) for ids in texts]
        too_long = sum(length > recipe.data.max_seq_len for length in lengths)
        labels = len({label for example in first for label in example.labels})
        return {"rows": len(first), "tokens": sum(lengths), "labels": labels, "too_long": too_long}
    ensure_chat_template(tokenizer)
    encoded = encode_batch(first, tokenizer, loss_on=recipe.data.loss_on)
    if may_exceed(tokenizer):
        while batch := list(itertools.islice(stream, CHECKED_ROWS)):
            encode_batch(batch, tokenizer, loss_on=recipe.data.loss_on)
    return {
        "rows": len(first),
        "tokens": sum(len(row.input_ids) for row in encoded),
        "trained_tokens": sum(row.trained_tokens for row in encoded),
        "longest": max(len(row.input_ids) for row in encoded),
        "too_long": sum(len(row.input_ids) > recipe.data.max_seq_len for row in encoded),
    }
