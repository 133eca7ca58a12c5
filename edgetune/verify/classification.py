"""Verification of a classification bundle: has it our numbers, torch's logits, training's tokens?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from edgetune.export.encoder import graph_tensors
from edgetune.export.read_graph import GraphFile, same_bytes
from edgetune.model.classifier import Classifier, float_copy
from edgetune.quantize.classification import dequantized
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.precisions import PRECISIONS
from edgetune.runtime.bundle import GRAPH, Bundle
from edgetune.runtime.classifier import Classifier as DeviceClassifier
from edgetune.verify.checks import Check, Verification, check, made
from edgetune.verify.deviation import ALL_PRODUCTS, LEAST_TOKENS, MOST_TOKENS, at_level_0

MOST_TEXTS = 200
BATCH_TEXTS = 16
ROUNDED_LIMIT = 0.2
"""Root mean square, in standard deviations of the logits; what int8 activations may cost. A sound MiniLM measures
0.02, broken ones 1."""
CHANGED_SHARE = 0.05
"""Of the texts may get another answer than from the merged classifier: more would be another classifier. MiniLM on
BANKING77 changes 1 to 2 % on the int4 grid, and 2 to 3 % with a threshold, whichever it is."""
LEAST_COMPARED = 50
"""Texts that are compared however large the encoder is, where the user has so many; with fewer it is told only."""
DIFFERING_SHARE = 0.05
"""Of the texts may get another answer than from torch with the same integers, a single one always: close calls."""


@dataclass(frozen=True)
class Built:
    """A bundle, not verified yet, and what it was made from."""

    bundle: Bundle
    classifier: Classifier
    """In torch, in float32."""
    matrices: Mapping[str, QuantizedMatrix]
    """Its weights on the bundle's grid, by module; none for a float precision."""
    tokenizer: Any


def verify_encoder(built: Built, texts: Sequence[str]) -> Verification:
    """Compare a bundle with the torch classifier it was made from, on up to MOST_TEXTS of the user's texts.

    Answers are those a user gets, at the temperature and threshold of the bundle: "unknown" is one of them. A check
    that cannot even be made counts as failed, with the reason in its detail.
    """
    texts = [text for text in texts if text.strip()][:MOST_TEXTS] or ["a text"]
    checks = made("weights", lambda: _weights(built.bundle, built.classifier, built.matrices))
    checks += made("token ids", lambda: _token_ids(built.bundle, built.classifier, texts, built.tokenizer))
    checks += made("logits", lambda: _logits(built, texts))
    return Verification(tuple(checks))


def _weights(bundle: Bundle, classifier: Classifier, matrices: Mapping[str, QuantizedMatrix]) -> Iterator[Check]:
    """The graph holds, byte for byte, what quantize.grid makes of the classifier's weights, and the others as they are.

    A float matrix that the exporter turned over for MatMul has no name any more: the logits show what is wrong with it,
    and the detail says how many there are. A graph that has none of our names does not pass.
    """
    graph = GraphFile(bundle.path / GRAPH)
    wrong = _wrong_matrices(graph, bundle, matrices) if bundle.grid else []
    compared, unnamed = len(matrices), 0
    held = {f"classifier.{name}.weight" for name in matrices}
    for name, tensor in graph_tensors(classifier).items():
        if name in graph.names:
            array = torch.from_numpy(graph.array(name).copy())
            compared += 1
            if not torch.equal(array, tensor.to(array.dtype)):
                wrong.append(name)
        elif tensor.ndim > 1 and tensor.is_floating_point() and name not in held:
            unnamed += 1
    detail = f"{compared} tensors compared byte for byte" + (f", differing: {wrong[0]}" if wrong else "")
    detail += f"; {unnamed} matrices without a name of ours show in the logits alone" if unnamed else ""
    yield check("weight bytes", len(wrong) if compared else math.inf, 0, detail)
    if bundle.grid is not None:
        slow = graph.float_matmuls()[:-1]
        detail = f"{slow[0]} is not on the grid" if slow else "every matrix product but the head's takes the fast path"
        yield check("matrices off the grid", len(slow), 0, detail)


def _wrong_matrices(graph: GraphFile, bundle: Bundle, matrices: Mapping[str, QuantizedMatrix]) -> list[str]:
    """Names of quantised weights that the graph does not hold, or holds otherwise than ours."""
    assert bundle.grid is not None
    right: set[str] = set()
    wrong: list[str] = []
    for _, inputs, attributes in graph.grid_nodes():
        name = inputs[0].removeprefix("classifier.").removesuffix(".packed")
        ours = matrices.get(name)
        level = attributes.get("accuracy_level", bundle.grid.accuracy_level)
        is_ours = (
            ours is not None
            and (attributes["bits"], attributes["block_size"], level)
            == (bundle.grid.bits, bundle.grid.block_size, bundle.grid.accuracy_level)
            and same_bytes(ours, graph.read_matrix(inputs, attributes, columns=ours.in_features))
        )
        (right.add if is_ours else wrong.append)(name)
    return wrong + [name for name in matrices if name not in right and name not in wrong]


def _token_ids(bundle: Bundle, classifier: Classifier, texts: Sequence[str], tokenizer: Any) -> Iterator[Check]:
    """The device's tokenizer gives training's ids, also of a text that is too long."""
    most = classifier.spec.max_length
    words = " ".join(texts).split()
    asked = [*texts, " ".join(words * (1 + most // len(words)))]
    wanted = tokenizer(asked, truncation=True, max_length=most)["input_ids"]
    found = DeviceClassifier(bundle).token_ids(asked)
    wrong = [text for text, a, b in zip(asked, wanted, found, strict=True) if list(a) != list(b)]
    detail = f"{len(asked)} texts, one of them cut" + (f", differing: {wrong[0][:80]!r}" if wrong else "")
    yield check("token ids", len(wrong), 0, detail)


def _logits(built: Built, texts: Sequence[str]) -> Iterator[Check]:
    """The graph computes what torch computes with the same numbers, with int8 activations nearly; and what it answers
    is, but for few texts, what the merged classifier answers."""
    bundle, tokenizer = built.bundle, built.tokenizer
    reference = dequantized(built.classifier, built.matrices)
    chosen = _affordable(reference, texts, tokenizer)
    wanted = _torch_logits(reference, chosen, tokenizer)
    spread = max(float(wanted.std()), 1e-6)
    device = DeviceClassifier(bundle)
    shipped = device.logits(chosen)
    exact = shipped
    if bundle.grid is not None:
        with at_level_0(bundle) as unrounded:
            exact = DeviceClassifier(unrounded).logits(chosen)
    kind = "the same dequantised integers, activations in float32" if bundle.grid else "the same weights"
    largest = float(np.abs(exact - wanted).max()) / spread
    limit = PRECISIONS[bundle.precision].logits_limit
    yield check("logits against torch", largest, limit, f"{len(chosen)} texts, {kind}")
    if bundle.grid is not None:
        rms = float(np.sqrt(np.square(shipped - wanted).mean())) / spread
        detail = f"root mean square at accuracy level {bundle.grid.accuracy_level}"
        yield check("rounded activations", rms, ROUNDED_LIMIT, detail)
    limit = max(1, int(DIFFERING_SHARE * len(chosen)))
    differing = _differing(device, shipped, wanted)
    yield check("differing answers", differing, limit, f"of {len(chosen)} texts, against torch with {kind}")
    if bundle.grid is not None:
        differing = _differing(device, shipped, _torch_logits(float_copy(built.classifier), chosen, tokenizer))
        limit, detail = int(CHANGED_SHARE * len(chosen)), f"of {len(chosen)} texts, against the merged classifier"
        yield check("changed answers", differing, max(1, limit), detail, is_required=len(chosen) >= LEAST_COMPARED)


def _differing(device: DeviceClassifier, a: np.ndarray, b: np.ndarray) -> int:
    """Of how many texts two sets of logits (N, labels) mean other labels, or "unknown" in one only."""
    answers = [[(item.is_unknown, set(item.labels)) for item in device.answer(logits)] for logits in (a, b)]
    return sum(mine != its for mine, its in zip(*answers, strict=True))


def _affordable(reference: Classifier, texts: Sequence[str], tokenizer: Any) -> list[str]:
    """The first texts whose tokens times the weights stay within ALL_PRODUCTS, and LEAST_COMPARED at least."""
    weights = sum(module.weight.numel() for module in reference.modules() if isinstance(module, nn.Linear))
    left = min(MOST_TOKENS, max(LEAST_TOKENS, ALL_PRODUCTS // weights))
    chosen: list[str] = []
    for text in texts:
        left -= len(tokenizer(text, truncation=True, max_length=reference.spec.max_length)["input_ids"])
        if len(chosen) >= LEAST_COMPARED and left < 0:
            break
        chosen.append(text)
    return chosen


@torch.no_grad()
def _torch_logits(reference: Classifier, texts: Sequence[str], tokenizer: Any) -> np.ndarray:
    """N texts -> (N, labels) float32, encoded and padded by training's tokenizer."""
    rows = []
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = tokenizer(
            list(texts[start : start + BATCH_TEXTS]),
            truncation=True,
            max_length=reference.spec.max_length,
            padding=True,
            return_tensors="pt",
        )
        rows.append(reference(batch["input_ids"], batch["attention_mask"]))
    return np.asarray(torch.cat(rows).numpy())
