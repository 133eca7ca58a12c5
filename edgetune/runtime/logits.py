"""Logits of a decoder bundle by plain onnxruntime: for losses and for comparing with torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.errors import BundleError, PromptError
from edgetune.files import read_json
from edgetune.runtime.batches import padded
from edgetune.runtime.bundle import AGAIN, GENAI_CONFIG, Bundle
from edgetune.runtime.probabilities import log_sum_exp
from edgetune.runtime.session import (
    as_bundle,
    check_tokens,
    embedding_rows,
    load_error,
    open_adapter,
    open_session,
    run_options,
)

CHUNK_LOGITS = 1 << 24  # logits held at once by token_losses: 64 MiB in float32
SWITCH = "edgetune.rotary_switch"
"""Key of a graph's metadata: texts of more tokens than this are rotated otherwise from their first token on."""
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_KEYS_AND_VALUES = "past_key_values."


class Logits:
    """A bundle's graph, its active adapter with it, in a session of its own; every call starts from an empty cache."""

    def __init__(self, bundle: Bundle | Path | str, *, threads: int | None = None) -> None:
        """`threads` defaults to the physical cores this process may use. Raises BundleError if loading fails."""
        self.bundle = as_bundle(bundle)
        where = self.bundle.path / GENAI_CONFIG
        config = read_json(where, BundleError, cure=AGAIN)
        try:
            decoder = config["model"]["decoder"]
            self._head_dim, graph = int(decoder["head_size"]), str(decoder["filename"])  # graphs may leave it open
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"{where}: damaged: {error!r}", cure=AGAIN) from None
        self._embedding_rows = embedding_rows(self.bundle)
        self._session = open_session(self.bundle, graph, threads=threads)
        self._adapter = open_adapter(self.bundle)
        self._options = run_options(self._adapter)
        self._inputs = {item.name: item for item in self._session.get_inputs()}
        stated = self._session.get_modelmeta().custom_metadata_map.get(SWITCH, "")
        self._switch = int(stated) if stated.isdecimal() else None

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """ids (T,) -> (T, V) float32; row t predicts token t + 1. Raises PromptError if there are none or too many."""
        return self.batch_logits([ids])[0]

    def batch_logits(self, batch: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """B sequences of any lengths in one run -> B arrays (T_b, V) float32. Raises PromptError."""
        for ids in batch:
            self._check(ids)
        if not batch:
            return []
        input_ids, mask = padded(batch)
        feeds = {"input_ids": input_ids, "attention_mask": mask, **self._empty_cache(len(batch))}
        logits = self._run(["logits"], feeds)[0].astype(np.float32, copy=False)
        return [logits[row, : len(ids)] for row, ids in enumerate(batch)]

    def token_losses(self, ids: Sequence[int]) -> np.ndarray:
        """ids (T,) -> (T - 1,) float32: nats of token t + 1 given all before it.

        Long texts go through in chunks that hand on their keys and values, so peak memory does not grow with T x V;
        beyond long rope's switch in one, as a prompt of that length does.
        """
        self._check(ids)
        tokens = np.asarray(ids, np.int64)
        cache = self._empty_cache(1)
        losses: list[np.ndarray] = []
        start, rows = 0, CHUNK_LOGITS
        is_whole = self._switch is not None and len(tokens) > self._switch
        while start < len(tokens) - 1:
            # The first chunk is short: it tells V, which a graph need not declare.
            end = len(tokens) if is_whole else min(start + (rows if start else 16), len(tokens) - 1)
            feeds = {"input_ids": tokens[None, start:end], "attention_mask": np.ones((1, end), np.int64), **cache}
            logits, *kept = self._run(self._outputs_in_order(), feeds)
            cache = dict(zip(cache, kept, strict=True))
            targets = tokens[start + 1 : end + 1]
            losses.append(negative_log_likelihood(logits[0, : len(targets)].astype(np.float32), targets))
            rows = max(16, CHUNK_LOGITS // logits.shape[-1])
            start = end
        return np.concatenate(losses) if losses else np.zeros(0, np.float32)

    def _check(self, ids: Sequence[int]) -> None:
        if not 0 < len(ids) <= self.bundle.context_length:
            raise PromptError(
                f"{len(ids)} tokens, the context of {self.bundle.name} holds 1 to {self.bundle.context_length}"
            )
        check_tokens(ids, self._embedding_rows)

    def _run(self, outputs: list[str], feeds: dict[str, np.ndarray]) -> list[Any]:
        if "position_ids" in self._inputs:
            count, total = feeds["input_ids"].shape[1], feeds["attention_mask"].shape[1]
            rows = np.arange(total - count, total, dtype=np.int64)
            feeds["position_ids"] = np.tile(rows, (len(feeds["input_ids"]), 1))
        try:
            return list(self._session.run(outputs, feeds, self._options))
        except Exception as error:  # onnxruntime raises one type for each of its status codes
            raise load_error(self.bundle, error, what="run") from None

    def _empty_cache(self, batch_size: int) -> dict[str, np.ndarray]:
        """Keys and values of no tokens, (B, heads, 0, head_dim) each, by input name."""
        return {
            name: np.zeros((batch_size, item.shape[1], 0, self._head_dim), _FLOATS[item.type])
            for name, item in self._inputs.items()
            if name.startswith(_KEYS_AND_VALUES)
        }

    def _outputs_in_order(self) -> list[str]:
        """logits, then the present keys and values in the order of the past ones among the inputs."""
        names = [name for name in self._inputs if name.startswith(_KEYS_AND_VALUES)]
        return ["logits", *(name.replace(_KEYS_AND_VALUES, "present.") for name in names)]


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """logits (T, V) float32, targets (T,) -> (T,) float32 nats: logsumexp(logits) - logits[target]."""
    chosen = np.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return (log_sum_exp(logits) - chosen).astype(np.float32)
