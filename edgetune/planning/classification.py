"""What a plan looks at where an encoder is trained to label texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.planning.findings import Findings
from edgetune.recipe import Recipe

if TYPE_CHECKING:
    from edgetune.data.formats import Example
    from edgetune.data.read import Split


def check_base(recipe: Recipe, base: Path, found: Findings) -> bool:
    """What export needs, and the pooler that is asked for. Nothing else follows from these, so always True."""
    from edgetune.export.encoder import check_libraries
    from edgetune.model.classifier import check_pooling

    found.attempt(check_libraries)
    found.attempt(lambda: check_pooling(base, recipe.classify.pooling))
    return True


def labels(recipe: Recipe) -> Sequence[str]:
    """Those of the training rows; all rows are read. Raises DataError."""
    from edgetune.data.prepare import check_labels

    return check_labels(recipe)


def encode(_recipe: Recipe, examples: Sequence[Example], tokenizer: Any) -> Sequence[Any]:
    """The ids of the texts. Raises DataError for a token that the base has no vector for."""
    from edgetune.data.encode import check_tokens

    texts: list[list[int]] = tokenizer([example.text or "" for example in examples], verbose=False)["input_ids"]
    for example, ids in zip(examples, texts, strict=True):
        check_tokens(ids, tokenizer, example.place)
    return texts


def count(recipe: Recipe, _which: Split, examples: Sequence[Example], tokenizer: Any) -> dict[str, int]:
    """Tokens, labels, and texts that are too long. Raises DataError."""
    lengths = [len(ids) for ids in encode(recipe, examples, tokenizer)]
    return {
        "tokens": sum(lengths),
        "labels": len({label for example in examples for label in example.labels}),
        "longest": max(lengths),
        "too_long": sum(length > recipe.data.max_seq_len for length in lengths),
    }


def check_use(
    recipe: Recipe, base: Path, tokenizer: Any, labels: Sequence[str], found: Findings, _scored_rows: int | None
) -> None:
    """Whether texts can be trained on within the length, and the labels be scored; all rows are looked at."""
    from edgetune.data.prepare import longest_row, require_usable
    from edgetune.evaluate.label_rows import make_label_set

    longest = longest_row(recipe, base, tokenizer)
    found.attempt(lambda: require_usable(recipe, tokenizer, labels=tuple(labels), max_length=longest))
    found.attempt(lambda: make_label_set(recipe, labels))
