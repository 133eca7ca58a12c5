"""Which architectures can be exported, the builder class of each, and which tensors of the checkpoint a node holds."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import ModelError
from edgetune.model.config import read_config
from edgetune.model.weights import EMBEDDING_TENSOR, HEAD_TENSOR

BUILDERS = {
    "Gemma2ForCausalLM": "Gemma2Model",
    "Gemma3ForCausalLM": "Gemma3Model",
    "GemmaForCausalLM": "GemmaModel",
    "GraniteForCausalLM": "GraniteModel",
    "LlamaForCausalLM": "LlamaModel",
    "MistralForCausalLM": "MistralModel",
    "Phi3ForCausalLM": "Phi3MiniModel",
    "Qwen2ForCausalLM": "QwenModel",
    "Qwen3ForCausalLM": "Qwen3Model",
    "SmolLM3ForCausalLM": "LlamaModel",
}
"""Architecture in config.json -> class of the builder. Tests build and verify each; OLMo failed that. SmolLM3 is a
Llama some of whose layers do not rotate, which export.decoder sees to."""

MODEL_TYPES = {"Gemma3ForCausalLM": "gemma3_text"}
"""Where onnxruntime-genai wants another name than the one it makes of the architecture."""

HEAD = "/lm_head/MatMul"
EMBEDDING = "/model/embed_tokens/Gather"


@dataclass(frozen=True)
class Part:
    """Rows of a tensor of the checkpoint; a part `index` of `count` equal ones."""

    tensor: str
    index: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        """The tensor, and which of its parts."""
        return self.tensor if self.count == 1 else f"{self.tensor}[{self.index}]"


def check_architecture(merged: Path) -> dict[str, Any]:
    """The folder's config.json, if its architecture can be exported.

    Raises ModelError, with the list of those that can.
    """
    config = read_config(merged)
    stated = config.get("architectures")
    architecture = stated[0] if isinstance(stated, list) and stated else None
    if not isinstance(architecture, str) or architecture not in BUILDERS:
        raise ModelError(
            f"{merged}: the architecture {architecture} cannot be exported",
            cure=f"choose a base with one of: {', '.join(BUILDERS)}",
        )
    return config


def parts(node: str, tensors: Container[str]) -> list[Part] | None:
    """The checkpoint's tensors whose rows, one after the other, are the weight of a node; None for other nodes."""
    if node == EMBEDDING:
        return [Part(EMBEDDING_TENSOR)]
    if node == HEAD:
        return [Part(HEAD_TENSOR if HEAD_TENSOR in tensors else EMBEDDING_TENSOR)]
    match = re.fullmatch(r"/model/layers\.(\d+)/(attn|mlp)/(\w+)/MatMul", node)
    if not match:
        return None
    block = f"model.layers.{match[1]}.{'self_attn' if match[2] == 'attn' else 'mlp'}"
    for candidate in _candidates(match[3]):
        found = [Part(f"{block}.{part.tensor}.weight", part.index, part.count) for part in candidate]
        if all(part.tensor in tensors for part in found):
            return found
    return None


def _candidates(projection: str) -> Iterable[list[Part]]:
    """What a projection of the builder may be made of, most likely first."""
    yield [Part(projection)]
    if projection == "qkv_proj":
        yield [Part("q_proj"), Part("k_proj"), Part("v_proj")]
    elif projection == "gate_up_proj":
        yield [Part("gate_proj"), Part("up_proj")]
    elif projection in ("gate_proj", "up_proj"):
        yield [Part("gate_up_proj", ("gate_proj", "up_proj").index(projection), 2)]
