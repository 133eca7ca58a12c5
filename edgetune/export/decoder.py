"""Decoder graphs: onnxruntime-genai's model builder called as a library, its weights put on our grid.

The builder makes the graph from a skeleton that holds shapes instead of weights; then every weight is read from the
checkpoint, quantised and written, one at a time. So memory holds one tensor, not one model; any width fits, the last
block being padded; and head and embedding are on the same grid as the rest. The other way in, a checkpoint quantised
before in Olive's format, brings our bytes through as well, but refuses widths that are no multiple of the block,
quantises a tied head by itself and wants zero points on the symmetric grid.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from edgetune.errors import HardwareError, ModelError
from edgetune.export.architecture import BUILDERS, MODEL_TYPES, check_architecture
from edgetune.export.graph import Weights, write_graph
from edgetune.export.silence import silenced
from edgetune.model.base import empty_model
from edgetune.model.weights import Place, find_tensors, read_tensor
from edgetune.quant.folder import QuantizedFolder
from edgetune.runtime.bundle import GRAPH, Grid
from edgetune.runtime.session import import_genai

Precision = Literal["int4", "int2", "int8", "fp16", "fp32"]
OPTIONS = ["windowed_kv_cache=false"]
"""The builder's options. A cache as long as the window only would have to be filled before the first token."""


def build_decoder(
    merged: Path,
    out: Path,
    *,
    precision: Precision,
    grid: Grid | None,
    quantized: QuantizedFolder | None = None,
    max_length: int | None = None,
) -> None:
    """Write model.onnx, model.onnx.data, genai_config.json and the tokenizer's files of a Hugging Face folder to `out`.

    Linear layers, head and embedding are on the grid where `grid` is given: those that `quantized` holds with its
    vectors, else rounded here. `max_length` cuts the context.
    Silent. Raises ModelError.
    """
    config = check_architecture(merged)
    architecture = config["architectures"][0]
    places = {**find_tensors(merged), **(quantized.vectors if quantized else {})}
    model = skeleton(merged, places)
    _import_builder()
    try:
        with silenced(), tempfile.TemporaryDirectory() as cache:
            builder, details = _builder(merged, out, Path(cache), architecture=architecture, precision=precision)
            builder.load_weights = lambda _: model
            builder.make_model(str(merged))
            builder.make_genai_config(details, {}, str(out))
            builder.save_processing(str(merged), {}, str(out))
            builder.stamp_build_metadata(builder.model)
    except NotImplementedError as error:  # a tensor of the skeleton was read: this builder wants more than shapes
        raise ModelError(f"{merged}: the builder cannot make {architecture} from its shapes: {error}") from None
    write_graph(builder.model, out / GRAPH, Weights(places, quantized), grid=grid, max_length=max_length)


def _builder(merged: Path, out: Path, cache: Path, *, architecture: str, precision: Precision) -> tuple[Any, Any]:
    """The builder's object for this model, and the model's configuration as the builder wants it."""
    builder, builders = _import_builder()
    float_precision = "fp16" if precision == "fp16" else "fp32"
    try:
        options = builder.parse_extra_options("", str(merged), str(out), float_precision, "cpu", str(cache), OPTIONS)
        options.pop("_effective_builder_config", None)
        config = options.pop("hf_details")["hf_config"]
        _flatten_rope(config)
        dtype = builder.set_io_dtype(float_precision, "cpu", options)
        made = _adapted(getattr(builders, BUILDERS[architecture]))(config, dtype, dtype, "cpu", str(cache), options)
    except (AttributeError, KeyError, TypeError) as error:
        raise HardwareError(
            f"this version of onnxruntime-genai has another model builder: {error}",
            cure='install the tested one: pip install "onnxruntime-genai==0.18.*"',
        ) from None
    made.model_type = MODEL_TYPES.get(architecture, made.model_type)
    return made, config


def _flatten_rope(config: Any) -> None:
    """Write rotary settings that transformers 5 keeps by kind of layer in the older way that the builder reads."""
    kinds = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in kinds and "sliding_attention" in kinds:
        config.rope_local_base_freq = kinds["sliding_attention"]["rope_theta"]
        config.rope_theta = kinds["full_attention"]["rope_theta"]
        config.rope_parameters = dict(kinds["full_attention"])


def _adapted(builder_class: Any) -> Any:
    """The builder's class, choosing what onnxruntime's CPU kernels can do and the builder does not know of."""

    def is_gqa_supported(_: Any) -> bool:
        return True  # in float16 too; the graph it makes instead fails in onnxruntime-genai's decoding

    def is_rotated_in_attention(self: Any) -> bool:
        return bool(self.head_size % 16 == 0)  # GroupQueryAttention refuses to rotate other heads by itself

    methods = {
        "is_gqa_supported": is_gqa_supported,
        "is_fused_rope_supported": is_rotated_in_attention,
        "is_packed_matmul_supported": is_rotated_in_attention,  # what is rotated before it must come apart
    }
    return type(builder_class.__name__, (builder_class,), methods)


def _import_builder() -> tuple[Any, Any]:
    """The builder's module and the package of its classes. Raises MissingExtraError."""
    import_genai()
    import onnxruntime_genai.models  # noqa: F401  (puts the builder's own modules on the path)
    from onnxruntime_genai.models import builder, builders

    return builder, builders


def skeleton(merged: Path, places: Mapping[str, Place]) -> torch.nn.Module:
    """The torch model with its vectors (norms, biases) from `places`, its matrices on the meta device: shapes only."""
    model: torch.nn.Module = empty_model(merged)
    vectors = {}
    for name, parameter in model.state_dict().items():
        if parameter.dim() >= 2:
            continue
        if name not in places:
            raise ModelError(f"{merged}: the tensor {name} is missing", cure="merge again")
        vectors[name] = read_tensor(places[name]).float()
    model.load_state_dict(vectors, strict=False, assign=True)
    return model.eval()
