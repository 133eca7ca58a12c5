"""What an answer is worth beside its reference: edgetune/evaluate/text_metrics.py."""

from __future__ import annotations

import sys
from decimal import Decimal

import pytest

from edgetune.errors import MissingExtraError
from edgetune.evaluate import text_metrics
from edgetune.evaluate.text_metrics import ROW_SCORES, chrf, final_number, is_same_number, require, rouge_l, token_f1
from edgetune.metric_names import LABEL_METRICS, METRIC_NAMES, TEXT_METRICS


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = <<3+4=7>>7 eggs.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### 5 is the answer, not 6", "5"),
        ("first 3, then 4.50 dollars", "4.50"),
        ("it is -2", "-2"),
        ("minus: −2.5.", "-2.5"),
        ("costs $.50", "0.50"),
        ("#### none of 3", "3"),
    ],
)
def test_the_number_of_an_answer_follows_the_mark_or_stands_last(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)


def test_texts_without_a_number_are_never_the_same_number() -> None:
    assert final_number("no idea") is None
    assert not is_same_number("no idea", "none")
    assert is_same_number("so 18.00", "#### 18")
    assert not is_same_number("so 18.5", "#### 18")


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The cat sat.", "a cat sat", 1.0),
        ("cat sat mat", "cat sat", 0.8),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("the", "", 1.0),
        ("cat", "", 0.0),
    ],
)
def test_token_f1_counts_words_as_squad_does(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected)


def test_rouge_l_is_f1_over_the_longest_common_subsequence() -> None:
    assert rouge_l("police ended the gunman", "police kill the gunman") == pytest.approx(3 / 4)
    assert rouge_l("same words", "same words") == 1.0
    assert rouge_l("", "words") == 0.0


def test_chrf_is_sacrebleus_own_number() -> None:
    import sacrebleu

    texts = ("turn on the lamp", "turn off the lamps")
    assert chrf(*texts) == pytest.approx(sacrebleu.sentence_chrf(texts[0], [texts[1]]).score / 100)
    assert chrf("same", "same") == pytest.approx(1.0)


@pytest.mark.parametrize("name", ROW_SCORES)
def test_every_score_is_1_for_the_reference_itself_and_0_for_nothing(name: str) -> None:
    text = '{"is": "42"}'
    assert ROW_SCORES[name](text, text) == pytest.approx(1.0)
    assert ROW_SCORES[name]("", text) == 0.0


def test_every_metric_of_a_recipe_is_known_here_and_has_a_name() -> None:
    assert {*ROW_SCORES, "check", "loss"} == set(TEXT_METRICS)
    assert set(METRIC_NAMES) == {*TEXT_METRICS, *LABEL_METRICS}


@pytest.mark.parametrize(
    ("name", "module"), [("rouge_l", "rouge_score.rouge_scorer"), ("chrf", "sacrebleu.metrics.chrf")]
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for cached in (text_metrics._rouge, text_metrics._chrf):
        cached.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'edgetune\[metrics\]'"):
        require(name)
