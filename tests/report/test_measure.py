"""Measuring: edgetune/report/measure.py."""

from __future__ import annotations

from edgetune.report.measure import disk_bytes


def test_disk_bytes_follow_links_and_count_a_file_once(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(b"x" * 100)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").symlink_to(tmp_path / "blobs" / "a")
    (tmp_path / "model" / "config.json").write_bytes(b"y" * 10)
    assert disk_bytes(tmp_path / "model") == 110
    assert disk_bytes(tmp_path / "model", tmp_path / "blobs") == 110
    assert disk_bytes(tmp_path / "model", suffixes=(".json",)) == 10
