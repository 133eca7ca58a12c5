"""What decides on memory and time of a run's stages: the base's shapes, the recipe, counts over its first rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgetune.recipe import Recipe

if TYPE_CHECKING:
    from edgetune.model.memory import Estimate
    from edgetune.model.on_device import OnDevice
    from edgetune.model.step import Step

StageName = Literal["train", "evaluations", "merge", "calibration", "repair", "graph", "verification"]
"""The stages of a run as they are planned and measured, in their order; evaluations: all that score, wherever."""
Shape = tuple[int, int]
"""Rows and columns of a matrix."""


@dataclass(frozen=True)
class Facts:
    """Of a recipe, and what its training needs; sizes of tensors in elements."""

    recipe: Recipe
    kind: str
    """What is planned for: "cpu" or "cuda"."""
    training: Estimate
    parameters: int
    linears: Mapping[str, Shape]
    """The layers' linears, by module."""
    ends: tuple[Shape, ...]
    """Embedding and, where it has its own weight, output head."""
    layers: int
    vocabulary: int
    held: Mapping[str, int]
    """Bytes by part of the base as [model] holds it."""
    item: int
    """Bytes of a number in the type that the base computes in."""
    token_bytes: int
    """Of a token that this base has read while it answers."""
    step: Step
    """A micro-batch in float32 through the layers without an adapter."""
    rows: Mapping[str, Mapping[str, int]]
    """Counts over the first rows of each source."""
    room_bytes: int
    """What the run may take."""
    bundle: OnDevice

    @property
    def process_parts(self) -> dict[str, int]:
        """The run's own process, or what CUDA takes of a GPU, before a stage has put anything there."""
        from edgetune.model.memory import LIBRARY_BYTES

        name = "Python and libraries" if self.kind == "cpu" else "CUDA context"
        return {name: LIBRARY_BYTES.get(self.kind, 0)}

    @property
    def adapter(self) -> int:
        """Weights that are trained."""
        return self.training.trainable_parameters

    @property
    def in_layers(self) -> int:
        """Weights of the layers' matrices."""
        return sum(rows * columns for rows, columns in self.linears.values())

    @property
    def in_ends(self) -> int:
        """Weights of embedding and head."""
        return sum(rows * columns for rows, columns in self.ends)

    @property
    def largest(self) -> int:
        """Weights of the layers' largest matrix."""
        return max(rows * columns for rows, columns in self.linears.values())

    @property
    def largest_end(self) -> int:
        """Weights of the larger of embedding and head."""
        return max(rows * columns for rows, columns in self.ends)

    @property
    def scored(self) -> Mapping[str, int]:
        """Counts of the rows that are scored, or of the rows that they are taken from."""
        return next(self.rows[name] for name in ("test", "eval", "train") if name in self.rows)

    @property
    def scored_rows(self) -> int:
        """How many of them are scored, as far as they were counted."""
        return min(self.scored["rows"], self.recipe.evaluate.max_rows or self.scored["rows"])

    @property
    def trained_share(self) -> float:
        """Of the training tokens, those that have a loss."""
        counts = self.rows["train"]
        return counts.get("trained_tokens", 0) / max(1, counts["tokens"])

    def longest(self, counts: Mapping[str, int]) -> int:
        """Tokens of the longest of some rows, at most max_seq_len."""
        return min(counts.get("longest", self.recipe.data.max_seq_len), self.recipe.data.max_seq_len)

    def mean(self, counts: Mapping[str, int], key: str = "tokens") -> float:
        """Tokens of a row, cut to max_seq_len, or of another count."""
        return min(counts.get(key, 0) / max(1, counts["rows"]), self.recipe.data.max_seq_len)


def with_batch(facts: Facts, size: int) -> Facts:
    """The facts of the same training with another micro-batch."""
    from edgetune.model.fit import with_values

    values = {"train.batch_size": size}
    step = dataclasses.replace(facts.step, recipe=with_values(facts.step.recipe, values))
    return dataclasses.replace(facts, recipe=with_values(facts.recipe, values), step=step)


def find_facts(
    recipe: Recipe, training: Estimate, rows: Mapping[str, Mapping[str, int]], *, kind: str, bundle: OnDevice
) -> Facts:
    """The facts of a recipe, from config.json alone. Raises ModelError."""
    from edgetune.model.base import base_folder, empty_model
    from edgetune.model.device import compute_dtype, device
    from edgetune.model.embedding import end_shapes, has_output_head
    from edgetune.model.inference import token_bytes
    from edgetune.model.memory import base_parts, room_bytes
    from edgetune.model.nf4 import quantized_linears
    from edgetune.model.step import Step, weight_of

    table = recipe.model
    model = empty_model(base_folder(table), trust_remote_code=table.trust_remote_code)
    config, linears = model.config.get_text_config(), quantized_linears(model)
    is_here = kind == device().type or table.compute_dtype != "auto"
    item = compute_dtype(table.compute_dtype, device()).itemsize if is_here else 2
    bare = dataclasses.replace(
        recipe,
        lora=dataclasses.replace(recipe.lora, target_modules=(), dropout=0.0),
        train=dataclasses.replace(recipe.train, offload_activations=False),
    )
    counts, most = rows["train"], recipe.data.max_seq_len
    sample, names = min(counts.get("longest", most), most), tuple(name for name, _ in model.named_modules())
    shapes = {name: weight_of(module).shape for name, module in linears.items()}
    return Facts(
        recipe=recipe,
        kind=kind,
        training=training,
        parameters=training.base_parameters,
        linears={name: (int(rows), int(columns)) for name, (rows, columns) in shapes.items()},
        ends=tuple(end_shapes(model)),
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        held=base_parts(model, table, item),
        item=item,
        token_bytes=token_bytes(model.config, item),
        step=Step(bare, config, linears, 4, kind, sample, has_output_head(model), names),
        rows=rows,
        room_bytes=room_bytes(recipe.budget, kind),
        bundle=bundle,
    )
