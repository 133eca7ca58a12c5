"""Variants of a run's bundle that are measured and thrown away: what the ledger compares the shipped one with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetune.export.compare import at_level_0
from edgetune.export.export import build_any
from edgetune.model.weights import find_tensors
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import Bundle, write_manifest

MOST_FLOAT_BYTES = 4 * 1024**3
"""A float32 graph larger than that is not built for the ledger."""


def float_bytes(merged: Path) -> int:
    """Bytes of a merged folder's weights in float32."""
    sizes = (place.size_bytes // place.dtype.itemsize for place in find_tensors(merged).values())
    return 4 * sum(sizes)


def build_float(merged: Path, folder: Path, recipe: Recipe, *, is_chat: bool) -> Bundle:
    """The same model as a float32 graph, not verified, in an empty folder."""
    table = dataclasses.replace(recipe.export, precision="fp32")
    return build_any(merged, folder, dataclasses.replace(recipe, export=table), is_chat=is_chat)


@contextmanager
def exact(bundle: Bundle) -> Iterator[Bundle]:
    """The bundle with activations that are not rounded to int8, in a folder that vanishes."""
    with at_level_0(bundle) as copied:
        yield write_manifest(dataclasses.replace(copied, files={}))
