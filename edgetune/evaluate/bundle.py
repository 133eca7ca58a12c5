"""A bundle as an Answerer: the device's own loop for answers, plain onnxruntime for losses. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from edgetune.errors import CheckError
from edgetune.evaluate.rows import EvalRow, Limits
from edgetune.runtime.bundle import check_hashes, open_bundle
from edgetune.runtime.decoder import Decoder, Generation
from edgetune.runtime.logits import Logits


class BundleAnswerer:
    """A decoder bundle, with its own renderer and tokenizer: prompts must come out as the very ids of the eval set."""

    def __init__(self, path: Path) -> None:
        """Raises BundleError, also if the files are not the bytes that were exported: a score is of these."""
        self.bundle = open_bundle(path)
        check_hashes(self.bundle)
        self.decoder = Decoder(self.bundle)

    def generate(
        self,
        rows: Sequence[EvalRow],
        *,
        limits: Limits,
        on_done: Callable[[int], object] | None = None,
    ) -> list[str]:
        """Greedy answers, one by one. Raises CheckError if its prompts or end tokens are not the training's."""
        self._check_ends(limits)
        for row in rows:
            self._check_prompt(row)
        texts = []
        for row in rows:
            texts.append(self._answer(row, limits).text)
            if on_done:
                on_done(len(texts))
        return texts

    def losses(self, rows: Sequence[EvalRow]) -> list[tuple[float, int]]:
        """(summed nats, trained tokens) of each row."""
        session = Logits(self.bundle)
        results = []
        for row in rows:
            trained = row.trained
            if not trained:
                results.append((0.0, 0))
                continue
            nats = session.token_losses(row.input_ids)
            results.append((float(sum(float(nats[index - 1]) for index in trained)), len(trained)))
        return results

    def trained_logits(self, rows: Sequence[EvalRow]) -> Iterator[np.ndarray]:
        """Logits float32 (trained tokens, vocabulary) of each row, in order."""
        session = Logits(self.bundle)
        for row in rows:
            yield session.logits(row.input_ids)[[index - 1 for index in row.trained]]

    def decode_speed(self, row: EvalRow, *, limits: Limits) -> tuple[int, float]:
        """(tokens, seconds) of one prompt alone, its first token left out."""
        self._check_ends(limits)
        answer = self._answer(row, limits)
        return max(len(answer.token_ids) - 1, 0), answer.decode_s

    def _answer(self, row: EvalRow, limits: Limits) -> Generation:
        return self.decoder.generate(row.prompt_ids, max_new_tokens=limits.max_new_tokens)

    def _check_prompt(self, row: EvalRow) -> None:
        ids = tuple(self.decoder.prompter.chat_ids(row.messages, tools=row.tools))
        if ids == row.prompt_ids:
            return
        at = next((i for i, pair in enumerate(zip(ids, row.prompt_ids, strict=False)) if pair[0] != pair[1]), None)
        where = f"token {at}" if at is not None else f"their lengths ({len(ids)} and {len(row.prompt_ids)} tokens)"
        raise CheckError(
            f"{self.bundle.path}: its prompt for {row.place} differs from the training's at {where}",
            cure="export the bundle again from this run",
        )

    def _check_ends(self, limits: Limits) -> None:
        own = (sorted(self.bundle.chat_format.eos_ids), self.bundle.context_length)
        wanted = (sorted(limits.eos_ids), limits.context_length)
        if own != wanted:
            raise CheckError(
                f"{self.bundle.path}: stops at tokens {own[0]} or a length of {own[1]}, the training at {wanted[0]} or "
                f"{wanted[1]}",
                cure="export the bundle again from this run",
            )
