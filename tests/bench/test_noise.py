"""Numbers with their noise: edgetune/bench/noise.py."""

from __future__ import annotations

import pytest

from edgetune.bench.noise import absent, agree, is_absent, summarise


def test_a_summary_has_the_median_of_processes_and_their_range() -> None:
    found = summarise([[1.0, 2.0, 9.0], [3.0, 3.0], [4.0]], prompt_tokens=5)
    assert (found["median"], found["least"], found["most"]) == (3.0, 2.0, 4.0)
    assert found["spread"] == pytest.approx(2 / 3)
    assert (found["processes"], found["samples"], found["prompt_tokens"]) == (3, 6, 5)


def test_the_p95_of_a_time_is_its_slow_end_and_that_of_a_rate_too() -> None:
    values = [float(number) for number in range(101)]
    assert summarise([values])["p95"] == pytest.approx(95)
    assert summarise([values], is_rate=True)["p95"] == pytest.approx(5)


def test_one_process_says_nothing_of_the_noise() -> None:
    assert summarise([[1.0, 2.0]])["spread"] is None


def test_no_samples_are_no_number() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarise([])
    assert is_absent(absent("no counter"))
    assert not is_absent(summarise([[0.0]]))


def test_two_runs_agree_where_their_ranges_are_near() -> None:
    one, near, far = (summarise([[low], [high]]) for low, high in ((10, 11), (11.5, 12), (20, 21)))
    assert agree(one, near)
    assert agree(near, one)
    assert not agree(one, far)
    assert not agree(far, one)
