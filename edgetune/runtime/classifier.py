"""Labels for texts from a classification bundle, by plain onnxruntime.

classifier = Classifier("runs/intents/bundle")
print(classifier.classify(["my card has not arrived"])[0].label)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetune.errors import BundleError, PromptError
from edgetune.runtime.batches import by_length, padded
from edgetune.runtime.bundle import AGAIN, GRAPH, Bundle, ClassifierFormat
from edgetune.runtime.probabilities import APPLIES, confidences, probabilities
from edgetune.runtime.session import (
    SPIN_US,
    as_bundle,
    check_text,
    load_error,
    load_tokenizer,
    open_session,
    tokenizing,
)

BATCH_TEXTS = 32
BATCH_TOKENS = 1 << 12
"""Tokens of a batch, padding included: what the layers hold at once does not grow with the number of texts."""


@dataclass(frozen=True)
class Classification:
    """The answer to one text."""

    label: str | None
    """The likeliest label; None when the text is unknown, or where there may be several and none applies."""
    labels: tuple[str, ...]
    """All labels of the answer, likeliest first: `label` alone, or, where there may be several, as many as apply."""
    probability: float
    """Of the likeliest label, whether it is the answer or not."""
    is_unknown: bool
    """The likeliest label means out of scope, or the answer's confidence lies below the bundle's threshold."""
    top: tuple[tuple[str, float], ...]
    """The likeliest labels and their probabilities, as many as were asked for."""


class Classifier:
    """A loaded classification bundle: `bundle` says what it is, `format` how its logits become answers."""

    def __init__(self, bundle: Bundle | Path | str, *, threads: int | None = None, spin_us: int = SPIN_US) -> None:
        """Load; `threads` defaults to the physical cores this process may use, `spin_us` is as in `Decoder`.

        Raises BundleError, and PromptError for `spin_us` out of range.
        """
        self.bundle = as_bundle(bundle)
        self.format: ClassifierFormat = self.bundle.classifier_format
        self._tokenizer = load_tokenizer(self.bundle)
        most = self.format.max_length
        if most <= self._tokenizer.num_special_tokens_to_add(False):  # tokenizers would cut nothing, without a word
            raise BundleError(
                f"{self.bundle.path}: max_length {most} leaves no room for a text", cure="export it again"
            )
        self._tokenizer.enable_truncation(most)
        self._session = open_session(self.bundle, GRAPH, threads=threads, spin_us=spin_us)

    def classify(self, texts: Sequence[str], *, top_k: int = 1) -> list[Classification]:
        """An answer for each text, with its `top_k` likeliest labels (all of them if there are fewer).

        Raises PromptError: an empty text, one that is no UTF-8, top_k below 1.
        """
        if top_k < 1:
            raise PromptError(f"top_k is {top_k}, must be at least 1")
        return self.answer(self.logits(texts), top_k=top_k)

    def count_tokens(self, text: str) -> int:
        """How many tokens a text is, special ones included, cut at the longest that the graph takes."""
        with tokenizing(self.bundle):
            return len(self._tokenizer.encode(text).ids)

    def answer(self, logits: np.ndarray, *, top_k: int = 1) -> list[Classification]:
        """What logits (N, labels) mean, whoever made them: N answers at the bundle's temperature and threshold."""
        rows = probabilities(logits, temperature=self.format.temperature, multi_label=self.format.multi_label)
        return [answer_of(row, self.format, top_k) for row in rows]

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, labels) float32, as the graph makes them: temperature not applied. Raises PromptError."""
        ids = self.token_ids(texts)
        logits = np.empty((len(ids), len(self.format.labels)), np.float32)
        for rows in by_length(map(len, ids), most_rows=BATCH_TEXTS, most_tokens=BATCH_TOKENS):
            logits[rows] = self._run([ids[row] for row in rows])
        return logits

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text: special tokens around it, cut to the bundle's length. Raises PromptError."""
        if isinstance(texts, str):
            raise TypeError("texts is a single text; give a list of texts")
        for text in texts:
            check_text(text, what="text")
            if not text.strip():
                raise PromptError("the text is empty")
        with tokenizing(self.bundle):
            return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def _run(self, batch: Sequence[Sequence[int]]) -> np.ndarray:
        """Token ids of B texts, padded here -> (B, labels) float32. Raises BundleError if the graph does not fit."""
        input_ids, mask = padded(batch, pad_id=self.format.pad_id)
        try:
            found = self._session.run(["logits"], {"input_ids": input_ids, "attention_mask": mask})[0]
        except Exception as error:  # onnxruntime raises one type for each of its status codes
            raise load_error(self.bundle, error, what="run") from None
        if found.shape != (len(batch), len(self.format.labels)) or not np.isfinite(found).all():
            raise BundleError(
                f"{self.bundle.path}: answers {len(self.format.labels)} labels with an array {found.shape} or with NaN",
                cure=AGAIN,
            )
        return np.asarray(found, np.float32)


def answer_of(row: np.ndarray, format_: ClassifierFormat, top_k: int) -> Classification:
    """Probabilities (labels,) of one text -> its answer; of equal ones the first label comes first."""
    order = np.argsort(-row, kind="stable")
    best, probability = format_.labels[order[0]], float(row[order[0]])
    confidence = confidences(row, multi_label=format_.multi_label)
    is_unknown = bool(best == format_.out_of_scope_label or confidence < (format_.threshold or 0.0))
    if is_unknown:
        labels: tuple[str, ...] = ()
    elif format_.multi_label:
        applying = [format_.labels[index] for index in order if row[index] >= APPLIES]
        labels = tuple(label for label in applying if label != format_.out_of_scope_label)
    else:
        labels = (best,)
    return Classification(
        label=labels[0] if labels else None,
        labels=labels,
        probability=probability,
        is_unknown=is_unknown,
        top=tuple((format_.labels[index], float(row[index])) for index in order[:top_k]),
    )
