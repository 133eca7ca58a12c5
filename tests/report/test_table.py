"""The table: edgetune/report/table.py."""

from __future__ import annotations

import dataclasses

from edgetune.report.table import TableRow, markdown, plain, values

ROWS = [
    TableRow("base", 0.0, (0.0, 0.0), 3.21, 12 * 1024**2, 600 * 1024**2, 123.4),
    TableRow("int4 bundle", 0.834, (0.8, 0.861), 0.1234, 4_500_000, 90_000_000, 1234.0),
]


def test_columns_are_aligned():
    lines = plain(ROWS, metric="json").splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == [
        *("model", "same", "JSON", "interval", "loss", "on", "disk", "peak", "memory", "tokens/s")
    ]
    assert "83.4%" in lines[2]
    assert "80.0% to 86.1%" in lines[2]
    assert "4.3 MiB" in lines[2]
    assert "1,234" in lines[2]


def test_a_run_scored_by_loss_has_no_task_score():
    line = plain([TableRow("base", None, None, 1.0, 1, 1, None)], metric="loss").splitlines()[1]
    assert line.split() == ["base", "-", "-", "1.0000", "0.0", "MiB", "0.0", "MiB", "-"]


def test_markdown_has_a_cell_for_each_column():
    lines = markdown(ROWS, metric="exact_match").splitlines()
    assert [line.count("|") for line in lines] == [8] * 4
    assert lines[1].startswith("| --- | ---:")


def test_values_name_their_units():
    assert values(ROWS)[1]["peak_bytes"] == 90_000_000


def test_models_whose_time_for_a_text_was_measured_have_that_in_place_of_their_speed():
    timed = TableRow("int4 bundle", 0.9, (0.85, 0.95), 0.3, 1, 1, None, latency_s=0.00123)
    header, base, bundle = plain([dataclasses.replace(timed, latency_s=None), timed], metric="accuracy").splitlines()
    assert header.endswith("one text")
    assert base.endswith(" -")
    assert bundle.endswith("1.2 ms")
