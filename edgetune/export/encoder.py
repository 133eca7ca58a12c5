"""Encoder graphs: a classifier exported by torch.onnx, its weights on our grid, its attention in one operator a layer.

The classifier's modules are copied, its tensors are not; linear layers and large embeddings among the copies are
replaced by those of operators.py before torch traces them.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetune.errors import HardwareError, ModelError, first_line
from edgetune.export.operators import ATTENTION, GridEmbedding, GridLinear, register_attention
from edgetune.export.silence import silenced
from edgetune.export.stored_scales import store_in_bfloat16
from edgetune.model.classifier import Classifier, float_copy
from edgetune.precision_names import PrecisionName
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.precisions import PRECISIONS
from edgetune.runtime.bundle import GRAPH

OPSET = 20
"""Of the ONNX standard operators: the first with Gelu."""
EXAMPLE = (2, 7)
"""Texts and tokens that torch traces with: it takes sizes of 0 and 1 for fixed, and equal ones for the same."""
_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def build_encoder(
    classifier: Classifier,
    out: Path,
    *,
    precision: PrecisionName,
    matrices: Mapping[str, QuantizedMatrix],
    accuracy_level: int = 0,
    max_length: int,
) -> None:
    """Write model.onnx and model.onnx.data of a classifier (float32, plain nn.Linear) into the folder `out`.

    Inputs: input_ids and attention_mask, int64 (batch, sequence), any batch, sequences up to `max_length`, which the
    encoder's positions must allow. Output: logits, float32 (batch, labels). `matrices`, from quantize_classifier, are
    held as they are and multiplied at `accuracy_level`; the head stays float32. With fp16 weights and states are
    float16; onnxruntime's CPU computes most of that in float32 (a MiniLM is as fast and half as large).
    Silent; equal input gives equal bytes. Raises ModelError for an encoder that torch cannot export, HardwareError for
    a torch that cannot export any.
    """
    check_libraries()
    graph = _Graph(_exportable(classifier, precision, matrices, accuracy_level)).eval()
    texts, tokens = EXAMPLE
    example = torch.ones(texts, min(tokens, max_length), dtype=torch.long)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=max_length)}
    try:
        with silenced(), _quiet_loggers(), torch.no_grad():
            program: Any = torch.onnx.export(
                graph,
                (example, example.clone()),
                dynamo=True,
                dynamic_shapes=(axes, axes),
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # torch.export and onnxscript raise many kinds
        kind = type(classifier.encoder).__name__
        reason = first_line(error.__cause__ or error)
        raise ModelError(f"{kind}: torch cannot export this encoder: {reason}") from None
    _strip(program.model)
    store_in_bfloat16(program.model.graph)
    ir.save(program.model, out / GRAPH, external_data=f"{GRAPH}.data")


def graph_tensors(classifier: Classifier) -> dict[str, Tensor]:
    """What a graph's named tensors hold that are not quantised: name in the graph -> tensor."""
    return _Graph(float_copy(classifier)).state_dict()


class _Graph(nn.Module):
    """What torch traces: (B, T) ids and mask -> logits (B, labels). Its tensors give the graph's their names."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.head: nn.Module = classifier.head
        if classifier.spec.head == "cosine":
            self.head = _CosineHead(classifier.spec.scale * F.normalize(classifier.head.weight, dim=-1))
        self.classifier = classifier
        classifier.head = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.classifier.embed(input_ids, attention_mask))


class _CosineHead(nn.Module):
    """A cosine head with its directions and its scale worked out beforehand."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, vectors: Tensor) -> Tensor:
        return F.linear(F.normalize(vectors, dim=-1), self.weight)


def _exportable(
    classifier: Classifier, precision: PrecisionName, matrices: Mapping[str, QuantizedMatrix], accuracy_level: int
) -> Classifier:
    """A copy with the modules that the graph computes with, and attention as one operator where there is a choice."""
    copied = float_copy(classifier, torch.float16 if PRECISIONS[precision].floats == "fp16" else torch.float32)
    for name, matrix in matrices.items():
        module = copied.get_submodule(name)
        is_linear = isinstance(module, nn.Linear)
        made = GridLinear(matrix, module.bias, accuracy_level) if is_linear else GridEmbedding(matrix)
        copied.set_submodule(name, made)
    register_attention()
    with silenced():  # what cannot choose logs that, and keeps its own
        copied.encoder.set_attn_implementation(ATTENTION)
    return copied


def _strip(model: ir.Model) -> None:
    """Take out what the exporter notes on each node: stack traces with the paths of this machine, 0.5 MiB in all."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    nodes = list(model.graph.all_nodes())
    values = [value for node in nodes for value in node.outputs]
    for noted in (*nodes, *values, *model.graph.inputs, *model.graph.initializers.values()):
        noted.metadata_props.clear()
        noted.doc_string = None


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Without the log lines of torch's exporter: what matters of them it raises."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_libraries() -> None:
    """Raises HardwareError for a torch before 2.8, ModuleNotFoundError without onnxscript, which torch exports by."""
    if not hasattr(getattr(torch.onnx, "ops", None), "symbolic"):
        raise HardwareError(
            f"torch {torch.__version__} cannot export encoders: it has no torch.onnx.ops.symbolic",
            cure='install a newer one: pip install "torch>=2.8"',
        )
    importlib.import_module("onnxscript")
