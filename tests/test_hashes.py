"""Hashes of what is on disk: edgetune/hashes.py."""

from __future__ import annotations

from edgetune.hashes import hash_tree


def test_the_hash_of_a_folder_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("1")
    first = hash_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert hash_tree(tmp_path) != first
