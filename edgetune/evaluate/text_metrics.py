"""What an answer is worth beside its reference, row by row: a name and a function for each metric of text.

In the flow: score.py takes the mean over the rows and its bootstrap interval. "check" and "loss" are not here: the one
is the user's own code (check.py), the other needs no answer.
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from edgetune.errors import MissingExtraError
from edgetune.evaluate.metrics import is_exact, is_same_json

RowScore = Callable[[str, str], float]
"""(answer, reference) -> 0..1."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?|[-−]?\.\d+")
_FINAL = "####"
"""What GSM8K's answers end with before their number."""


def final_number(text: str) -> Decimal | None:
    """The number that an answer ends with: the first one after the last ####, else its last one; None without any.

    Thousands may have commas; 5 and 5.00 are equal. Source: GSM8K, arXiv:2110.14168, and its dataset.py.
    """
    _, mark, end = text.rpartition(_FINAL)
    found = _NUMBER.findall(end if mark else text)
    if not found:
        return None
    return Decimal(found[0 if mark else -1].replace(",", "").replace("−", "-"))


def is_same_number(answer: str, reference: str) -> bool:
    """Whether two texts end with the same number."""
    number = final_number(answer)
    return number is not None and number == final_number(reference)


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, each as often as it occurs.

    Lower case, without punctuation and English articles. Two texts without a word are equal, one of them is not the
    other. Source: SQuAD v1.1's evaluation script (arXiv:1606.05250, section 6.1).
    """
    got, wanted = _words(answer), _words(reference)
    if not got or not wanted:
        return float(got == wanted)
    return 2.0 * (Counter(got) & Counter(wanted)).total() / (len(got) + len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L's F1, by rouge-score with stemming. Raises MissingExtraError. Source: Lin 2004, section 3."""
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


def chrf(answer: str, reference: str) -> float:
    """chrF of one sentence (character 6-grams, beta 2) by sacrebleu, as a share. Raises MissingExtraError.

    The mean over rows is not sacrebleu's corpus chrF, which weighs long rows more. Source: Popović 2015.
    """
    return float(_chrf().sentence_score(answer, [reference]).score) / 100.0


ROW_SCORES: dict[str, RowScore] = {
    "exact_match": is_exact,
    "json": is_same_json,
    "final_number": is_same_number,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "chrf": chrf,
}
RIGHT_OR_WRONG = ("exact_match", "json", "final_number", "check")
"""Metrics by which a row is right or wrong, nothing between."""


def require(metric: str) -> None:
    """Raises MissingExtraError if a package that the metric needs is not installed: before hours of answers."""
    if metric in ROW_SCORES:
        ROW_SCORES[metric]("a", "a")


def _words(text: str) -> list[str]:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return _ARTICLES.sub(" ", plain).split()


@functools.cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError:
        raise _missing("rouge-score", "rouge_l") from None
    return RougeScorer(["rougeL"], use_stemmer=True)


@functools.cache
def _chrf() -> Any:
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ModuleNotFoundError:
        raise _missing("sacrebleu", "chrf") from None
    return CHRF()


def _missing(package: str, metric: str) -> MissingExtraError:
    return MissingExtraError(
        f"{package} is not installed; the metric {metric} needs it", cure="install it: pip install 'edgetune[metrics]'"
    )
