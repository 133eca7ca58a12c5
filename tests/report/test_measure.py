"""Measuring: edgetune/report/measure.py."""

from __future__ import annotations

import subprocess
import sys

from edgetune.report.measure import disk_bytes, peak_memory_bytes, resident_bytes


def test_disk_bytes_follow_links_and_count_a_file_once(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(b"x" * 100)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").symlink_to(tmp_path / "blobs" / "a")
    (tmp_path / "model" / "config.json").write_bytes(b"y" * 10)
    assert disk_bytes(tmp_path / "model") == 110
    assert disk_bytes(tmp_path / "model", tmp_path / "blobs") == 110
    assert disk_bytes(tmp_path / "model", suffixes=(".json",)) == 10


def test_the_peak_stays_when_memory_is_given_back():
    code = (
        "from edgetune.report.measure import peak_memory_bytes, resident_bytes\n"
        "block = bytearray(b'x' * 64 * 1024**2); del block\n"
        "assert peak_memory_bytes() > resident_bytes() + 32 * 1024**2\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_this_process_has_a_peak():
    # Linux keeps both counters per thread and sums them loosely; they may be some pages apart.
    assert peak_memory_bytes() >= resident_bytes() - 2**20 > 0
