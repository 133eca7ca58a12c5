"""One contestant of benchmarks.survival in a process of its own: score, loss, distance, memory, speed. Prints JSON.

A .gguf file through llama-cpp-python, a bundle through EdgeTune's own evaluation code; both on the same token ids.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from edgetune.evaluate.distance import measure_distance
from edgetune.evaluate.rows import EvalRow, Limits, read_eval_set
from edgetune.evaluate.score import measure_speed, score
from edgetune.process_memory import peak_resident_bytes


class GgufAnswerer:
    """A .gguf file that answers as EdgeTune's targets do; token ids go in, `decode` turns answers into text."""

    def __init__(self, path: Path, tokenizer: Path, context: int) -> None:
        import llama_cpp
        from tokenizers import Tokenizer

        threads = len(os.sched_getaffinity(0))
        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            verbose=False,
        )
        self.tokenizer = Tokenizer.from_file(str(tokenizer))

    def generate(
        self, rows: Sequence[EvalRow], *, limits: Limits, on_done: Callable[[int], object] | None = None
    ) -> list[str]:
        """Greedy answers."""
        texts = []
        for row in rows:
            ids = list(self._greedy(row.prompt_ids, limits))
            texts.append(self.tokenizer.decode(ids, skip_special_tokens=True))
            if on_done:
                on_done(len(texts))
        return texts

    def losses(self, rows: Sequence[EvalRow]) -> list[tuple[float, int]]:
        """(summed nats, trained tokens) of each row."""
        found = []
        for row, logits in zip(rows, self.trained_logits(rows), strict=True):
            wanted = [row.input_ids[index] for index in row.trained]
            shifted = logits - logits.max(-1, keepdims=True)
            nats = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(wanted)), wanted]
            found.append((float(nats.sum(dtype=np.float64)), len(wanted)))
        return found

    def trained_logits(self, rows: Sequence[EvalRow]) -> Iterator[np.ndarray]:
        """Logits float32 (trained tokens, vocabulary) of each row."""
        for row in rows:
            self.model.reset()
            self.model.eval(list(row.input_ids))
            yield np.array(self.model.scores[[index - 1 for index in row.trained]], np.float32)

    def decode_speed(self, row: EvalRow, *, limits: Limits) -> tuple[int, float]:
        """(tokens, seconds) of one prompt alone, its first token left out."""
        import time

        times = [time.perf_counter() for _ in self._greedy(row.prompt_ids, limits)]
        return max(len(times) - 1, 0), times[-1] - times[0] if times else 0.0

    def _greedy(self, prompt: Sequence[int], limits: Limits) -> Iterator[int]:
        self.model.reset()
        self.model.eval(list(prompt))
        room = min(limits.max_new_tokens, limits.context_length - len(prompt))
        for _ in range(room):
            token = int(np.argmax(self.model.scores[self.model.n_tokens - 1]))
            if token in limits.eos_ids:
                return
            yield token
            self.model.eval([token])


def main() -> None:
    """Arguments: kind (gguf or bundle), path, eval set, distributions, answers to write, tokenizer."""
    kind, path, rows, distributions, answers, tokenizer = (sys.argv[1], *map(Path, sys.argv[2:7]))
    eval_set = read_eval_set(rows)
    if kind == "gguf":
        target: object = GgufAnswerer(path, tokenizer, eval_set.limits.context_length)
    else:
        from edgetune.evaluate.bundle import BundleAnswerer

        target = BundleAnswerer(path)
    speed = measure_speed(target, eval_set)  # type: ignore[arg-type]
    peak_bytes = peak_resident_bytes()
    result, found = score(target, eval_set)  # type: ignore[arg-type]
    distance = measure_distance(target, eval_set.rows, distributions)  # type: ignore[arg-type]
    answers.write_text("".join(json.dumps(dataclasses.asdict(answer)) + "\n" for answer in found), encoding="utf-8")
    print(
        json.dumps(
            {
                "score": result.score,
                "interval": result.interval,
                "loss": result.loss,
                "kl": distance.kl if distance else None,
                "same_next_token": distance.agreement if distance else None,
                "peak_bytes": peak_bytes,
                "tokens_per_s": speed.tokens_per_s if speed else None,
            }
        )
    )


if __name__ == "__main__":
    main()
