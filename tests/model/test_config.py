"""What is read of a config.json: edgetune/model/config.py."""

from __future__ import annotations

import pytest

from edgetune.model.config import context_length
from edgetune.recipe import ExportTable


@pytest.mark.parametrize(("max_length", "expected"), [(None, 512), (100, 100), (1000, 512)])
def test_the_context_is_the_bases_or_what_the_recipe_cuts_it_to(max_length: int | None, expected: int) -> None:
    assert context_length({"max_position_embeddings": 512}, ExportTable(max_length=max_length)) == expected
