"""How far new rows are from old ones: lengths, tokens, words, labels, each beside what chance alone would show. Pure.

In the flow: token ids and labels of rows of both kinds -> measures; adapt_run hands them in and adds the losses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SHUFFLES = 200
QUANTILE = 0.95
MOST_WORDS = 10
PRIOR = 0.5
"""Of each word, in the log-odds that find the words that are typical of new rows."""


@dataclass(frozen=True)
class Rows:
    """Rows of one kind, old or new."""

    ids: Sequence[Sequence[int]]
    """Token ids of each row."""
    texts: Sequence[str]
    labels: Sequence[tuple[str, ...]]
    """Of each row; empty tuples where texts have no labels."""


@dataclass(frozen=True)
class Measure:
    """One difference between old and new rows."""

    name: str
    value: float
    """From 0, no difference, to 1."""
    chance: float
    """The 0.95 quantile of the same measure where the same rows are dealt into old and new by chance."""

    @property
    def is_drift(self) -> bool:
        """Whether so much is rarely seen where there is no difference."""
        return self.value > self.chance


@dataclass(frozen=True)
class Lengths:
    """Tokens of a row."""

    mean: float
    median: float
    p95: float


@dataclass(frozen=True)
class Drift:
    """What differs between old and new rows."""

    old_rows: int
    new_rows: int
    old_lengths: Lengths
    new_lengths: Lengths
    measures: tuple[Measure, ...]
    """length: Kolmogorov-Smirnov distance of the rows' lengths; vocabulary: Jensen-Shannon divergence of the tokens, in
    bits; unseen: share of the new rows' tokens that no old row has; labels: total variation distance of their shares.
    """
    typical_words: tuple[str, ...]
    """Those that new rows have oftener than old ones, most telling first."""
    labels: dict[str, tuple[float, float]]
    """Label -> its share of the old and of the new rows' labels, largest change first."""


def drift(old: Rows, new: Rows, *, seed: int = 0) -> Drift:
    """Compare rows. Each kind needs at least one."""
    lengths = np.array([len(row) for row in (*old.ids, *new.ids)])
    flat = np.array([token for row in (*old.ids, *new.ids) for token in row], np.int64)
    tokens = _Counts(flat, np.repeat(np.arange(len(lengths)), lengths), len(lengths))
    names = sorted({label for row in (*old.labels, *new.labels) for label in row})
    measures: dict[str, Callable[[np.ndarray], float]] = {
        "length": lambda is_new: _ks(lengths[~is_new], lengths[is_new]),
        "vocabulary": lambda is_new: _js(*tokens.split(is_new)),
        "unseen": lambda is_new: _unseen(*tokens.split(is_new)),
    }
    if names:
        label_counts = _count_labels((*old.labels, *new.labels), names)
        measures["labels"] = lambda is_new: _tv(*label_counts.split(is_new))
    is_new = np.arange(len(lengths)) >= len(old.ids)
    generator = np.random.default_rng(seed)
    dealt = [generator.permutation(is_new) for _ in range(SHUFFLES)]
    found = tuple(
        Measure(name, measure(is_new), float(np.quantile([measure(chance) for chance in dealt], QUANTILE)))
        for name, measure in measures.items()
    )
    return Drift(
        old_rows=len(old.ids),
        new_rows=len(new.ids),
        old_lengths=_lengths(lengths[~is_new]),
        new_lengths=_lengths(lengths[is_new]),
        measures=found,
        typical_words=typical_words(old.texts, new.texts),
        labels=_label_shares(old, new, names),
    )


def typical_words(old: Iterable[str], new: Iterable[str], *, most: int = MOST_WORDS) -> tuple[str, ...]:
    """Words that are oftener in new texts than in old ones, by log-odds of at least two standard errors.

    Source: Monroe, Colaresi and Quinn 2008, Fightin' Words, Political Analysis 16, section 3.5.
    """
    before, after = (
        Counter(word for text in texts for word in re.findall(r"\w+", text.lower())) for texts in (old, new)
    )
    words = sorted(set(before) | set(after))
    if not words:
        return ()
    a, b = (np.array([counts[word] for word in words], np.float64) + PRIOR for counts in (before, after))
    odds = np.log(b / (b.sum() - b + PRIOR)) - np.log(a / (a.sum() - a + PRIOR))
    scores = odds / np.sqrt(1 / a + 1 / b)
    order = np.argsort(-scores, kind="stable")[:most]
    return tuple(words[place] for place in order if after[words[place]] and scores[place] >= 2.0)


@dataclass(frozen=True)
class _Counts:
    """Items, each of some row."""

    items: np.ndarray
    rows: np.ndarray
    row_count: int

    def split(self, is_new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How often each item is in the old rows and in the new ones, float64 (items,) each."""
        size = int(self.items.max(initial=0)) + 1
        after = np.bincount(self.items, weights=is_new[self.rows].astype(np.float64), minlength=size)
        return np.bincount(self.items, minlength=size) - after, after


def _count_labels(rows: Sequence[tuple[str, ...]], names: Sequence[str]) -> _Counts:
    numbers = {name: number for number, name in enumerate(names)}
    pairs = [(numbers[label], row) for row, labels in enumerate(rows) for label in labels]
    items, places = np.array(pairs, np.int64).T
    return _Counts(items, places, len(rows))


def _label_shares(old: Rows, new: Rows, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    counts = [Counter(label for row in rows.labels for label in row) for rows in (old, new)]
    totals = [max(1, count.total()) for count in counts]
    shares = {name: (counts[0][name] / totals[0], counts[1][name] / totals[1]) for name in names}
    return dict(sorted(shares.items(), key=lambda item: -abs(item[1][1] - item[1][0])))


def _lengths(values: np.ndarray) -> Lengths:
    return Lengths(float(values.mean()), float(np.median(values)), float(np.quantile(values, QUANTILE)))


def _ks(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance between two empirical distribution functions."""
    points = np.unique(np.concatenate([a, b]))
    shares = [np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def _js(a: np.ndarray, b: np.ndarray) -> float:
    """Jensen-Shannon divergence of two counts, in bits: 0 to 1. Source: Lin 1991, IEEE Trans. Inf. Theory 37."""
    p, q = (counts / max(counts.sum(), 1.0) for counts in (a, b))
    middle = (p + q) / 2

    def surprise(share: np.ndarray) -> float:
        is_there = share > 0
        return float((share[is_there] * np.log2(share[is_there] / middle[is_there])).sum())

    return max(0.0, (surprise(p) + surprise(q)) / 2)


def _unseen(a: np.ndarray, b: np.ndarray) -> float:
    """Share of b that falls on what a does not have."""
    return float(b[a == 0].sum() / max(b.sum(), 1.0))


def _tv(a: np.ndarray, b: np.ndarray) -> float:
    """Half the summed difference of two distributions."""
    p, q = (counts / max(counts.sum(), 1.0) for counts in (a, b))
    return float(np.abs(p - q).sum() / 2)
