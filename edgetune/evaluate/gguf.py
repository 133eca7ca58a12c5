"""A .gguf file as an Answerer: llama.cpp answers and tells losses. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from edgetune.evaluate.rows import EvalRow, Limits
from edgetune.model.gguf import Gguf


class GgufAnswerer:
    """A loaded .gguf file."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError, MissingExtraError."""
        self.file = Gguf(path)

    def generate(
        self, rows: Sequence[EvalRow], *, limits: Limits, on_done: Callable[[int], object] | None = None
    ) -> list[str]:
        """Greedy answers, one by one."""
        texts = []
        for row in rows:
            texts.append(self.file.detokenize(self._answer(row, limits)[0]))
            if on_done:
                on_done(len(texts))
        return texts

    def losses(self, rows: Sequence[EvalRow]) -> list[tuple[float, int]]:
        """(summed nats, trained tokens) of each row."""
        results = []
        for row in rows:
            trained = row.trained
            nats = self.file.token_losses(row.input_ids) if trained else np.zeros(0)
            results.append((float(sum(float(nats[index - 1]) for index in trained)), len(trained)))
        return results

    def trained_logits(self, rows: Sequence[EvalRow]) -> Iterator[np.ndarray]:
        """Logits float32 (trained tokens, vocabulary) of each row, in order."""
        for row in rows:
            wanted = np.asarray([index - 1 for index in row.trained], np.int64)
            parts, start = [np.zeros((0, self.file.vocabulary), np.float32)], 0
            for found in self.file.logits(row.input_ids):
                parts.append(found[wanted[(wanted >= start) & (wanted < start + len(found))] - start])
                start += len(found)
            yield np.concatenate(parts)

    def decode_speed(self, row: EvalRow, *, limits: Limits) -> tuple[int, float]:
        """(tokens, seconds) of one prompt alone, its first token left out."""
        ids, seconds = self._answer(row, limits)
        return max(len(ids) - 1, 0), seconds

    def _answer(self, row: EvalRow, limits: Limits) -> tuple[list[int], float]:
        """New token ids, end token left out, and the seconds after the first one."""
        room = min(limits.max_new_tokens, limits.context_length - len(row.prompt_ids))
        ids: list[int] = []
        first_s = last_s = time.perf_counter()
        for token_id in self.file.stream(row.prompt_ids, new_tokens=room):
            last_s = time.perf_counter()
            if token_id in limits.eos_ids:
                break
            ids.append(token_id)
            first_s = last_s if len(ids) == 1 else first_s
        return ids, last_s - first_s
