"""Which tokens a layer looks at and how it rotates them, as transformers has it; where that changes with the length.

onnxruntime-genai's builder derives windows and rotation from config.json in its own way, which differs for some
architectures. Here both come from transformers: its rule for windows, its own module for the rotary tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgetune.errors import ModelError
from edgetune.model.base import empty_model
from edgetune.model.config import read_config

WINDOWED = ("mistral", "phi3")
"""model_type of decoders whose every layer has the window, where config.json states one."""
WINDOWED_BY_LAYER = ("gemma2", "gemma3_text", "qwen2", "qwen3", "smollm3")
"""model_type of decoders whose layers have the window where layer_types calls them sliding_attention."""
ROTATIONS = ("default", "dynamic", "linear", "llama3", "longrope", "proportional", "su", "yarn")
"""rope_type of rotations that are tables in a graph; "su" is what the first Phi-3 called longrope."""


@dataclass(frozen=True)
class Attention:
    """The attention of a decoder, layer by layer."""

    windows: tuple[int | None, ...]
    """Tokens a layer looks at, its own among them; None: all before it."""
    rotates: tuple[bool, ...]
    """Whether a layer rotates queries and keys."""
    tables: tuple[str, ...]
    """The kind of rotary table a layer reads, "" where all layers read one."""
    switch: int | None
    """Length up to which long rope takes its short factors; None for other rotations, and where no text is longer."""
    context: int
    """Longest text."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of text beyond which the graph computes something that it did not before, shortest first."""
        stated = {*self.windows, self.switch} - {None}
        return tuple(sorted(length for length in stated if length is not None and length < self.context))


def attention_of(config: Any, *, max_length: int | None = None) -> Attention:
    """What a configuration of transformers says of its attention; `max_length` cuts the context."""
    layers = range(config.num_hidden_layers)
    kinds = getattr(config, "layer_types", None)
    context = int(getattr(config, "max_position_embeddings", None) or 2048)
    context = min(context, max_length or context)
    parameters = _rope_parameters(config)
    is_by_kind = kinds is not None and any(isinstance(parameters.get(kind), Mapping) for kind in kinds)
    rotates = getattr(config, "no_rope_layers", None) if config.model_type == "smollm3" else None
    return Attention(
        windows=_windows(config, layers),
        rotates=tuple(bool(rotates[layer]) if rotates else True for layer in layers),
        tables=tuple(str(kinds[layer]) if kinds is not None and is_by_kind else "" for layer in layers),
        switch=_switch(parameters, context),
        context=context,
    )


def _windows(config: Any, layers: Sequence[int]) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None) or None
    if config.model_type in WINDOWED:
        return tuple(window for _ in layers)
    if config.model_type in WINDOWED_BY_LAYER:
        return tuple(window if config.layer_types[layer] == "sliding_attention" else None for layer in layers)
    return tuple(None for _ in layers)


def _rope_parameters(config: Any) -> Mapping[str, Any]:
    found = getattr(config, "rope_parameters", None)
    return found if isinstance(found, Mapping) else {}


def _switch(parameters: Mapping[str, Any], context: int) -> int | None:
    if parameters.get("rope_type") != "longrope":
        return None
    length = int(parameters["original_max_position_embeddings"])
    return length if length < context else None


def rotary_tables(model: Any, attention: Attention) -> dict[str, tuple[Tensor, Tensor]]:
    """Cosines and sines (rows, width / 2) float32 by kind of table, for every position of the context.

    With a switch the rows of the short factors come first, then those of the long ones. `model`: of transformers, its
    weights may be on the meta device. Computed by transformers' own module.
    """
    module = type(model.model.rotary_emb)(config=model.config)
    return {kind: _table(module, kind, attention) for kind in sorted(set(attention.tables))}


@torch.no_grad()
def _table(module: Any, kind: str, attention: Attention) -> tuple[Tensor, Tensor]:
    """The cosines and sines of one kind, half of each: the other half repeats it."""
    spans = [attention.context] if attention.switch is None else [attention.switch, attention.context]
    cosines, sines = [], []
    for span in spans:
        options = {"layer_type": kind} if kind else {}
        cos, sin = module(torch.zeros(1), torch.arange(span)[None], **options)
        cosines.append(cos[0, :, : cos.shape[-1] // 2])
        sines.append(sin[0, :, : sin.shape[-1] // 2])
    return torch.cat(cosines).contiguous(), torch.cat(sines).contiguous()


def check_rotation(folder: Path) -> None:
    """Raises ModelError, with the kind's name, for a rotation that is no table: config.json of any transformers."""
    config = read_config(folder)
    for key in ("rope_parameters", "rope_scaling"):
        stated = config.get(key)
        tables = [stated, *stated.values()] if isinstance(stated, dict) else []
        for table in tables:
            kind = table.get("rope_type", table.get("type")) if isinstance(table, dict) else None
            if kind is not None and kind not in ROTATIONS:
                raise ModelError(
                    f"{folder}: the rotary scaling {kind!r} cannot be exported",
                    cure=f"choose a base with one of: {', '.join(ROTATIONS)}",
                )


def decoder_attention(folder: Path, *, max_length: int | None = None) -> tuple[Any, Attention]:
    """The model of a folder on the meta device, and its attention. Raises ModelError."""
    check_rotation(folder)
    model = empty_model(folder)
    return model, attention_of(model.config, max_length=max_length)
