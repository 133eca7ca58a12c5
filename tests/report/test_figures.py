"""The table of figures: edgetune/report/figures.py, and its columns."""

from __future__ import annotations

import pytest
from made_run import encoder_target

from edgetune.report.columns import column
from edgetune.report.figures import FIGURES, figures_of, find, place


@pytest.mark.parametrize(
    ("key", "value", "title", "shown"),
    [
        ("labelling.batch.64.8.latency_s", 0.01, "8 texts of 64 tokens", "10.0 ms"),
        ("labelling.batch.64.1.latency_s", 0.01, "1 text of 64 tokens", "10.0 ms"),
        ("labelling.batch.64.8.texts_per_s", 812.3, "texts/s, 8 texts of 64 tokens", "812"),
        ("labelling.peak_bytes.32.cold", 90 * 1024**2, "peak memory, cold, 32 texts", "90.0 MiB"),
        ("score.lm_eval.gsm8k.exact_match", 0.25, "lm-eval gsm8k, exact_match", "25.0%"),
        ("score.lm_eval.wiki.v2.word_perplexity", 31.5, "lm-eval wiki.v2, word_perplexity", "31.5"),
        ("peak_bytes.2048", 1024**2, "peak memory, context 2,048", "1.0 MiB"),
        ("decode_tokens_per_s.p95", 12.34, "decode tokens/s, p95", "12.3"),
        ("energy_j_per_token", 0.01234, "energy a token", "0.0123 J"),
        ("kl_to_reference", 0.01, "KL to the reference", "0.0100"),
        ("wall_s", 600.0, "wall time", "10.0 min"),
    ],
)
def test_a_figure_has_its_name_and_unit_by_its_whole_path(key: str, value: float, title: str, shown: str) -> None:
    assert find(key) is not None
    assert (column(key).title, column(key).form(value)) == (title, shown)


def test_no_path_of_the_table_is_there_twice_and_each_finds_its_own_line() -> None:
    keys = [figure.key for figure in FIGURES]
    assert len(set(keys)) == len(keys)
    numbers = dict.fromkeys(("context", "prompt", "tokens", "texts"), "77")
    for figure in FIGURES:
        found = find(figure.key.format(task="a.b", metric="mine", state="warm", **numbers))
        assert found is not None
        assert found[0] is figure, figure.key


def test_better_is_said_of_all_that_has_a_better_end() -> None:
    assert column("labelling.batch.64.8.latency_s").better == "less"
    assert column("score.lm_eval.wiki.word_perplexity").better == "less"
    assert column("score.lm_eval.mine.my_metric").better is None


def test_an_encoders_bench_becomes_figures_and_how_it_was_measured_does_not() -> None:
    found = figures_of(encoder_target("words"))
    assert found["score.accuracy"]["value"] == 0.9
    assert found["score.macro_f1"] == {"value": 0.88}
    assert found["labelling.batch.128"] == {"absent": "its texts hold 64 tokens"}
    assert found["labelling.batch.64.8.texts_per_s"]["median"] == 800.0
    assert not [
        key for key in found if "context" in key or ("tokens" in key.rpartition(".")[2] and "absent" not in found[key])
    ]


def test_figures_stand_in_the_order_of_the_table_and_of_their_numbers() -> None:
    keys = ["peak_bytes.2048.cold", "labelling.batch.16.1.latency_s", "peak_bytes.512.cold", "score.json", "unknown"]
    assert sorted(keys, key=place) == [keys[3], keys[2], keys[0], keys[1], keys[4]]
