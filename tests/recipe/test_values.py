"""Sizes and other values as a recipe writes them."""

from __future__ import annotations

import pytest

from edgetune.recipe import parse_size


@pytest.mark.parametrize(
    ("text", "size"), [("2 GiB", 2 * 1024**3), ("512MiB", 512 * 1024**2), ("1.5G", 3 * 512 * 1024**2)]
)
def test_sizes_are_read_in_binary_units(text, size):
    assert parse_size(text) == size
