"""The pictures of the page: edgetune/report/charts.py."""

from __future__ import annotations

import pytest
from made_run import make_label_run, make_run

from edgetune.report.charts import charts, confusion, frontier
from edgetune.report.columns import column, default_axes
from edgetune.report.facts import Confusion, Curve, Model, Number, Run
from edgetune.report.read import read_report
from edgetune.report.training_charts import MOST_STEPS, losses


def run_of(*points, name="run", evaluation=()):
    return Run(name, name, "generation", "json", curve=Curve(tuple(points), tuple(evaluation)))


def test_every_picture_is_one_that_vega_lite_reads_without_a_warning(tmp_path, recwarn, capfd):
    vl_convert = pytest.importorskip("vl_convert")
    labels = tuple(f"intent {number}" for number in range(30))
    found = charts(read_report([make_run(tmp_path / "run"), make_label_run(tmp_path / "labels", labels)]))
    assert {"losses", "planner", "ledger-1", "search-1", "confusion-2"} <= set(found)
    for name, spec in found.items():
        if name != "frontier":  # which the page completes
            assert vl_convert.vegalite_to_vega(spec, vl_version="6.4")["marks"], name
    assert not recwarn.list
    assert "WARN" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("last", "scale"), [(2.9, {"zero": False}), (0.1, {"type": "log", "nice": False})])
def test_losses_are_on_a_log_scale_where_they_fall_far(last, scale):
    spec = losses([run_of((1, 3.0), (2, last))])
    assert spec["encoding"]["y"]["scale"] == scale


def test_a_long_training_is_thinned():
    spec = losses([run_of(*((step, 1.0) for step in range(10_000)), evaluation=[(9999, 1.0)])])
    drawn = [item for item in spec["data"]["values"] if item["kind"] == "training"]
    assert MOST_STEPS / 2 < len(drawn) <= MOST_STEPS


def test_runs_without_losses_have_no_picture_of_them():
    assert losses([run_of()]) is None
    assert losses([]) is None


def test_what_has_no_number_has_no_point():
    models = [Model("run", "base", "base", {"loss": Number(1.0)}), Model("run", "bundle", "bundle", {})]
    assert frontier(models) is None
    assert default_axes(models) is None


def test_empty_cells_are_not_drawn():
    values = confusion(Confusion(("a", "b"), ((3, 0), (1, 2))))["data"]["values"]
    assert [(item["truth"], item["answer"], item["is"]) for item in values] == [
        ("a", "a", "right"),
        ("b", "a", "wrong"),
        ("b", "b", "right"),
    ]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("score.json", 0.784, "78.4%"),
        ("score.rouge_l", 0.5, "50.0%"),
        ("score.bleu", 0.5, "0.5"),
        ("peak_bytes", 90 * 1024**2, "90.0 MiB"),
        ("disk_bytes", 1200 * 1024**2, "1,200 MiB"),
        ("loss", -0.00001, "0.0000"),
        ("latency_s", 0.0041, "4.1 ms"),
        ("load_s", 2.5, "2.50 s"),
        ("tokens_per_s", 3069.4, "3,069"),
        ("anything_bytes", 1024**2, "1.0 MiB"),
    ],
)
def test_numbers_are_written_with_their_unit(key, value, shown):
    assert column(key).form(value) == shown


def test_parts_of_a_key_are_in_the_title():
    assert column("peak_bytes.2048.cold").title == "peak memory, cold, context 2,048"
    assert column("time_to_first_token_s.128").title == "first token after 128 tokens"
