"""Verification of what changes with the length of a text: windows of attention, rotary tables, long rope's switch."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.errors import ModelError
from edgetune.export.attention import Attention, decoder_attention, rotary_tables
from edgetune.export.decoder import ROTARY_TABLES
from edgetune.export.read_graph import GraphFile
from edgetune.quantize.precisions import PRECISIONS
from edgetune.runtime.bundle import GRAPH, Bundle
from edgetune.verify.checks import Check, check
from edgetune.verify.deviation import ALL_LOGITS, ALL_PRODUCTS, tail_deviation
from edgetune.verify.stand_in import stand_in_deviations

TAIL = 16
"""Tokens beyond a length whose logits are compared."""
LEAST_TOKENS = 1 << 10
"""A text of so many tokens is run whatever the size of the model."""
MOST_TOKENS = 5000
"""Longer texts are not run at all: their attention alone takes minutes, and the lengths of real windows are below."""
PLANNED_TOKENS = 1500
"""The same before a training."""
LIMIT = 1e-3
"""In standard deviations of the logits; float32 in another order of summation gives 1e-5."""


def check_computable(base: Path, *, max_length: int | None = None) -> None:
    """Raises ModelError for a base whose graph cannot be made, or computes something else than transformers.

    A small random model of its kind is built and run, beyond windows of up to PLANNED_TOKENS too.
    """
    _run_stand_in(base, (base / "config.json").read_bytes(), max_length)


@functools.lru_cache(maxsize=8)
def _run_stand_in(base: Path, _: bytes, max_length: int | None) -> None:
    """Once for each content of config.json: nothing else decides what the stand-in is."""
    _, attention = decoder_attention(base, max_length=max_length)
    lengths = [length for length in attention.lengths if length + TAIL <= PLANNED_TOKENS]
    texts = [3 * TAIL, *(length + TAIL for length in lengths)]
    for text, found in zip(texts, stand_in_deviations(base, texts, tail=TAIL), strict=True):
        if not found.relative <= LIMIT:
            raise ModelError(
                f"{base}: its graph would compute something else than transformers, after {text} tokens by "
                f"{found.relative:.2g} of the logits' spread",
                cure="choose another base, and report this one",
            )


def attention_checks(bundle: Bundle, merged: Path) -> Iterator[Check]:
    """Each layer of the graph has the window that transformers gives it, and reads transformers' rotary tables."""
    model, attention = decoder_attention(merged, max_length=bundle.context_length)
    graph = GraphFile(bundle.path / GRAPH)
    found = dict(_windows(graph))
    wrong = [layer for layer, window in enumerate(attention.windows) if found.get(layer) != (window or -1)]
    windowed = sum(window is not None for window in attention.windows)
    detail = f"{windowed} of {len(attention.windows)} layers have one" + (f", wrong in {wrong[0]}" if wrong else "")
    yield check("attention windows", len(wrong), 0, detail)
    if any(attention.rotates):
        limit = PRECISIONS[bundle.precision].table_limit
        detail = f"cosines and sines of {attention.context} positions" + _split(attention)
        yield check("rotary tables", _table_error(graph, model, attention), limit, detail)


def _split(attention: Attention) -> str:
    return "" if attention.switch is None else f", of {attention.switch} more for texts up to that length"


def _windows(graph: GraphFile) -> Iterator[tuple[int, int]]:
    """Layer and window of each attention node; -1 where it has none."""
    for node in graph.graph:
        match = re.fullmatch(r"/model/layers\.(\d+)/attn/GroupQueryAttention", str(node.name))
        if match:
            yield int(match[1]), node.attributes.get_int("local_window_size", -1)


def _table_error(graph: GraphFile, model: Any, attention: Attention) -> float:
    """The largest difference of a cosine or sine in the graph; infinity where a table is missing or of another size."""
    kinds = {kind for kind, rotates in zip(attention.tables, attention.rotates, strict=True) if rotates}
    largest = 0.0
    for kind, tables in rotary_tables(model, attention).items():
        for start, table in zip(ROTARY_TABLES, tables, strict=True):
            name = f"{start}_{kind}" if kind else start
            if kind not in kinds:
                continue
            if name not in graph.names or graph.array(name).shape != tuple(table.shape):
                return float("inf")
            largest = max(largest, float(np.abs(graph.array(name).astype(np.float32) - table.numpy()).max()))
    return largest


def length_checks(
    reference: Any, bundle: Bundle, merged: Path, sequences: Sequence[Sequence[int]], *, limit: float
) -> Iterator[Check]:
    """The graph computes what torch computes also beyond each length at which it changes.

    `reference`: the torch model with the numbers of the bundle, which multiplies activations as they are. Where a text
    of that length would take the model too long, a small random one of its kind is run instead; its detail says so.
    """
    _, attention = decoder_attention(merged, max_length=bundle.context_length)
    for length in attention.lengths:
        tokens = min(length + TAIL, attention.context)
        tail, name = tokens - length, f"logits beyond {length} tokens"
        if _is_bearable(reference, tokens):
            found = tail_deviation(reference, bundle, _long_text(sequences, tokens), tail=tail)
            yield check(name, found.relative, limit, f"the last {tail} of {tokens} tokens against torch")
        elif tokens <= MOST_TOKENS:
            (found,) = stand_in_deviations(merged, [tokens], tail=tail)
            detail = (
                f"the last {tail} of {tokens} tokens, of a small random model of this kind: this one takes too long"
            )
            yield check(name, found.relative, LIMIT, detail)
        else:
            detail = "not run, it would take too long; windows and rotary tables were compared"
            yield check(name, 0, limit, detail, is_required=False)


def _is_bearable(reference: Any, tokens: int) -> bool:
    """Whether the model itself can be run over so many tokens: some minutes and a GiB of logits at the most."""
    weights = sum(parameter.numel() for parameter in reference.parameters())
    affordable = max(LEAST_TOKENS, ALL_PRODUCTS // weights)
    return tokens <= affordable and tokens * int(reference.config.vocab_size) <= ALL_LOGITS


def _long_text(sequences: Sequence[Sequence[int]], length: int) -> list[int]:
    """So many tokens of the prompts, drawn: in their order they could repeat, and hide what a layer no longer sees."""
    pool = np.array(list(chain.from_iterable(sequences)))
    return [int(token) for token in np.random.default_rng(0).choice(pool, length)]
