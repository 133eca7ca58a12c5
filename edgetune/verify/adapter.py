"""Verification of an adapter beside its base: is it ours, has it an effect, and is that effect the right one?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor

from edgetune.export.adapter_inputs import read_arrays
from edgetune.export.graph import Weights
from edgetune.export.read_graph import DeviceTensors, GraphFile, GraphWeights
from edgetune.lora.merge import merge_weight
from edgetune.lora.read import Adapter, Pair
from edgetune.model.lazy import lazy_model
from edgetune.model.weights import find_tensors
from edgetune.quantize.folder import QuantizedFolder
from edgetune.quantize.precisions import PRECISIONS
from edgetune.runtime.bundle import GRAPH, NO_ADAPTER, Bundle, adapter_file, choose_adapter
from edgetune.verify.checks import Check, Verification, check, made
from edgetune.verify.deviation import at_level_0, deviations
from edgetune.verify.generation import (
    KL_LIMIT,
    MOST_PROMPTS,
    Prompt,
    text_checks,
    token_sequences,
    weight_checks,
)
from edgetune.verify.lengths import attention_checks, length_checks

EFFECT_LIMIT = 0.5
"""Most that the tolerance of the logits may be of the adapter's effect; else the right adapter looks like none."""


@dataclass(frozen=True)
class Kept:
    """An adapter in its bundle, and what the two were made from."""

    bundle: Bundle
    """With this adapter active."""
    adapter: Adapter
    arrays: Mapping[str, np.ndarray]
    """The adapter's numbers by the names of the graph's inputs."""
    base: Path
    """The base as it was put on the grid, a Hugging Face folder."""
    tokenizer: Any
    """Training's."""


def verify_kept(kept: Kept, prompts: Sequence[Prompt], *, quantized: QuantizedFolder) -> Verification:
    """Compare a new bundle with the base and the adapter it was made from, on the user's prompts.

    A check that cannot even be made counts as failed, with the reason in its detail.
    """
    places = find_tensors(kept.base)
    source = Weights({**places, **quantized.vectors}, quantized)
    sequences = token_sequences(prompts[:MOST_PROMPTS], kept.tokenizer, kept.bundle)
    checks = made("weights", lambda: weight_checks(kept.bundle, source))
    checks += made("attention", lambda: attention_checks(kept.bundle, kept.base))
    checks += made("base", lambda: _base(kept, sequences))
    return Verification((*checks, *verify_adapter(kept, prompts).checks))


def verify_adapter(kept: Kept, prompts: Sequence[Prompt]) -> Verification:
    """Compare an adapter in a bundle, whose base was verified before, with the one it was made from."""
    prompts = prompts[:MOST_PROMPTS]
    sequences = token_sequences(prompts, kept.tokenizer, kept.bundle)
    checks = made("adapter inputs", lambda: _inputs(kept))
    checks += made("logits", lambda: _logits(kept, sequences))
    checks += text_checks(kept.bundle, kept.base, prompts, kept.tokenizer)
    return Verification(tuple(checks))


class AdaptedTensors(Mapping[str, Tensor]):
    """The numbers of a base with LoRA pairs added, float32."""

    def __init__(self, tensors: Mapping[str, Tensor], pairs: Mapping[str, Pair]) -> None:
        self._tensors, self._pairs = tensors, pairs

    def __getitem__(self, name: str) -> Tensor:
        weight, pair = self._tensors[name], self._pairs.get(name)
        return weight if pair is None else merge_weight(weight, pair.a, pair.b, scaling=pair.scaling)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _inputs(kept: Kept) -> Iterator[Check]:
    """The adapter's file fills inputs of the graph, each in its shape, A and B of one rank, with our numbers."""
    inputs = {value.name: value for value in GraphFile(kept.bundle.path / GRAPH).graph.inputs}
    found = read_arrays(kept.bundle.path / adapter_file(str(kept.bundle.adapter)))
    wrong = [name for name, array in found.items() if name not in inputs or not _fits(array, inputs[name])]
    wrong += [name for name, array in found.items() if not _has_partner(name, array, found)]
    detail = f"{len(found)} inputs" + (f", wrong: {wrong[0]}" if wrong else "")
    yield check("adapter names and shapes", len(wrong) if found else math.inf, 0, detail)
    names = {*found, *kept.arrays}
    differing = [name for name in names if not np.array_equal(found.get(name, ()), kept.arrays.get(name, ()))]
    detail = f"{len(names)} matrices compared" + (f", differing: {sorted(differing)[0]}" if differing else "")
    yield check("adapter numbers", len(differing), 0, detail)


def _fits(array: np.ndarray, declared: ir.Value) -> bool:
    sizes = declared.shape or ()
    pairs = zip(sizes, array.shape, strict=False)
    is_shape = len(sizes) == array.ndim and all(
        isinstance(size, str | ir.SymbolicDim) or size == real for size, real in pairs
    )
    return bool(is_shape and array.dtype == np.float32 and declared.dtype == ir.DataType.FLOAT)


def _has_partner(name: str, array: np.ndarray, found: Mapping[str, np.ndarray]) -> bool:
    """Whether A has a B of its rank, and B an A."""
    if ".lora_A." in name:
        other = found.get(name.replace(".lora_A.", ".lora_B."))
        return other is not None and other.shape[0] == array.shape[1]
    return name.replace(".lora_B.", ".lora_A.") in found


def _base(kept: Kept, sequences: Sequence[Sequence[int]]) -> Iterator[Check]:
    """Without an adapter the graph computes what torch computes with the dequantised base."""
    places, limit = find_tensors(kept.base), PRECISIONS[kept.bundle.precision].logits_limit
    reference = lazy_model(kept.base, DeviceTensors(GraphWeights(kept.bundle.path / GRAPH, places), places))
    with at_level_0(choose_adapter(kept.bundle, NO_ADAPTER)) as exact:
        (found,) = deviations(reference, [exact], sequences)
        beyond = list(length_checks(reference, exact, kept.base, sequences, limit=limit))
    detail = f"{found.tokens} tokens of the base, no adapter, against torch with the same dequantised integers"
    yield check("base's logits against torch", found.relative, limit, detail)
    yield from beyond


def _logits(kept: Kept, sequences: Sequence[Sequence[int]]) -> Iterator[Check]:
    """With the adapter the graph computes what torch computes with the same base and pairs; without, something else."""
    bundle, places = kept.bundle, find_tensors(kept.base)
    device = DeviceTensors(GraphWeights(bundle.path / GRAPH, places), places)
    reference = lazy_model(kept.base, AdaptedTensors(device, kept.adapter.pairs))
    with at_level_0(bundle) as exact:
        bundles = [exact, choose_adapter(exact, NO_ADAPTER), bundle]
        found, without, rounded = deviations(reference, bundles, sequences)
    limit = PRECISIONS[bundle.precision].logits_limit
    detail = f"{found.tokens} tokens against torch with the dequantised base and the adapter's pairs"
    yield check("logits against torch", found.relative, limit, detail)
    detail = (
        f"tolerance over effect: the adapter moves a logit by up to {without.relative:.3g} standard deviations, "
        f"{without.kl:.3g} nats a token; another likeliest token after {1 - without.agreement:.2%}"
    )
    yield check("adapter's effect", limit / max(without.relative, 1e-12), EFFECT_LIMIT, detail)
    assert bundle.grid is not None
    level = bundle.grid.accuracy_level
    detail = f"nats a token at accuracy level {level}; the same likeliest next one after {rounded.agreement:.2%}"
    yield check("rounded activations", rounded.kl, KL_LIMIT, detail)
