"""Decoder graphs: onnxruntime-genai's model builder called as a library, its weights put on our grid.

The builder makes the graph from a skeleton that holds shapes instead of weights; then every weight is read from the
checkpoint, quantised and written, one at a time. So memory holds one tensor, not one model; any width fits, the last
block being padded; and head and embedding are on the same grid as the rest. The other way in, a checkpoint quantised
before in Olive's format, brings our bytes through as well, but refuses widths that are no multiple of the block,
quantises a tied head by itself and wants zero points on the symmetric grid.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgetune.errors import HardwareError, ModelError, first_line
from edgetune.export.architecture import BUILDERS, MODEL_TYPES, check_architecture
from edgetune.export.attention import Attention, attention_of, rotary_tables
from edgetune.export.graph import Weights, write_graph
from edgetune.export.silence import silenced
from edgetune.model.base import empty_model
from edgetune.model.weights import Place, find_tensors, read_tensor
from edgetune.precision_names import PrecisionName
from edgetune.quantize.folder import QuantizedFolder
from edgetune.quantize.precisions import PRECISIONS
from edgetune.runtime.bundle import GRAPH
from edgetune.runtime.grid import BundleGrid
from edgetune.runtime.logits import SWITCH
from edgetune.runtime.session import import_genai

OPTIONS = ["windowed_kv_cache=false"]
"""The builder's options. A cache as long as the window only would have to be filled before the first token."""
ROTARY_TABLES = ("cos_cache", "sin_cache")
"""Beginnings of the names of a graph's rotary tables; the kind follows where there are several."""


def build_decoder(
    merged: Path,
    out: Path,
    *,
    precision: PrecisionName,
    grid: BundleGrid | None,
    quantized: QuantizedFolder | None = None,
    max_length: int | None = None,
    eos_ids: Sequence[int] = (),
) -> None:
    """Write model.onnx, model.onnx.data, genai_config.json and the tokenizer's files of a Hugging Face folder to `out`.

    Linear layers, head and embedding are on the grid where `grid` is given: those that `quantized` holds with its
    vectors, else rounded here. `max_length` cuts the context; `eos_ids` end a text where the folder does not say.
    Silent. Raises ModelError.
    """
    check_architecture(merged)
    weights = Weights({**find_tensors(merged), **(quantized.vectors if quantized else {})}, quantized)

    def describe(builder: Any, config: Any) -> None:
        if config.eos_token_id is None and eos_ids:
            config.eos_token_id = list(eos_ids)
        builder.make_genai_config(config, {}, str(out))
        builder.save_processing(str(merged), {}, str(out))
        builder.stamp_build_metadata(builder.model)

    model, attention = _graph(merged, out, weights.places, precision=precision, max_length=max_length, then=describe)
    write_graph(model, out / GRAPH, weights, grid=grid, metadata=_metadata(attention))


def build_bare(folder: Path, out: Path, *, max_length: int | None = None) -> None:
    """Write model.onnx and model.onnx.data of a Hugging Face folder to `out`, in float32, and nothing beside them.

    `max_length` cuts the context. Raises ModelError.
    """
    weights = Weights(find_tensors(folder))
    model, attention = _graph(folder, out, weights.places, precision="fp32", max_length=max_length)
    write_graph(model, out / GRAPH, weights, grid=None, metadata=_metadata(attention))


def _metadata(attention: Attention) -> dict[str, str]:
    return {} if attention.switch is None else {SWITCH: str(attention.switch)}


def _graph(
    merged: Path,
    out: Path,
    places: Mapping[str, Place],
    *,
    precision: PrecisionName,
    max_length: int | None,
    then: Callable[[Any, Any], None] = lambda *_: None,
) -> tuple[Any, Attention]:
    """The builder's graph of a folder, matrices left out, and its attention; `then` is called before it is let go."""
    architecture = check_architecture(merged)["architectures"][0]
    model = skeleton(merged, places)
    attention = attention_of(model.config, max_length=max_length)
    tables = rotary_tables(model, attention)
    _import_builder()
    with silenced(), tempfile.TemporaryDirectory() as cache:
        made, config, options = _prepared(merged, out, Path(cache), architecture=architecture, precision=precision)
        try:
            builder = _adapted(made, attention, tables)(config, *options)
            builder.model_type = MODEL_TYPES.get(architecture, builder.model_type)
            builder.load_weights = lambda _: model
            builder.make_model(str(merged))
            then(builder, config)
        except Exception as error:  # the builder raises what it likes at a configuration that it does not know
            reason = first_line(error) if isinstance(error, NotImplementedError | ValueError) else repr(error)
            raise ModelError(
                f"{merged}: no graph can be made of this {architecture}: {reason}", cure="choose another base"
            ) from None
    return builder.model, attention


def _prepared(
    merged: Path, out: Path, cache: Path, *, architecture: str, precision: PrecisionName
) -> tuple[Any, Any, tuple[Any, ...]]:
    """The builder's class for this model, the model's configuration as that wants it, and its other arguments."""
    builder, builders = _import_builder()
    float_precision = PRECISIONS[precision].floats
    try:
        options = builder.parse_extra_options("", str(merged), str(out), float_precision, "cpu", str(cache), OPTIONS)
        options.pop("_effective_builder_config", None)
        config = options.pop("hf_details")["hf_config"]
        dtype = builder.set_io_dtype(float_precision, "cpu", options)
        made = getattr(builders, BUILDERS[architecture])
    except (AttributeError, KeyError, TypeError) as error:
        raise HardwareError(
            f"this version of onnxruntime-genai has another model builder: {error}",
            cure='install the tested one: pip install "onnxruntime-genai==0.18.*"',
        ) from None
    config.rope_local_base_freq = None  # the builder of Gemma 3 asks for it; the tables are made elsewhere
    return made, config, (dtype, dtype, "cpu", str(cache), options)


def _adapted(builder_class: Any, attention: Attention, tables: Mapping[str, tuple[Tensor, Tensor]]) -> Any:
    """The builder's class with transformers' windows and rotation, choosing what onnxruntime's CPU kernels can do."""

    def is_gqa_supported(_: Any) -> bool:
        return True  # in float16 too; the graph it makes instead fails in onnxruntime-genai's decoding

    def get_genai_commit(_: Any) -> str | None:
        # its own search runs git where the library lies, and writes down the commit of whose repository that is in
        return getattr(import_genai(), "__commit__", None)

    def is_rotated_in_attention(self: Any) -> bool:
        # GroupQueryAttention refuses to rotate other widths by itself, and does not choose between two tables
        widths = [self.head_size, *(2 * cosines.shape[1] for cosines, _ in tables.values())]
        return all(width % 16 == 0 for width in widths) and attention.switch is None

    def is_local(_: Any, layer: int) -> bool:
        return attention.windows[layer] is not None

    def make_key_value_cache_shape(self: Any, layer: int, shape: Sequence[Any]) -> list[Any]:
        # open in the builder, for caches of fewer bits too; who reads the graph alone could not make an empty one
        return [*builder_class.make_key_value_cache_shape(self, layer, shape)[:-1], self.head_size]

    def make_attention(self: Any, layer: int, *arguments: Any, **options: Any) -> None:
        kept, values = self.attention_attrs, attention.rotates[layer]
        before = {name: kept[name] for name in ("rope", "use_rope_in_attn")}
        kept |= {"rope": values, "use_rope_in_attn": values and before["use_rope_in_attn"]}
        self.rotary_kind = attention.tables[layer]
        if attention.switch is not None:
            options["position_ids"] = _rows_of_table(self, attention.switch)
        builder_class.make_attention(self, layer, *arguments, **options)
        kept |= before

    def make_attention_input_proj(self: Any, layer: int, *arguments: Any, **options: Any) -> None:
        builder_class.make_attention_input_proj(self, layer, *arguments, **options)
        if not (is_rotated_in_attention(self) or self.attention_attrs["q_norm"]):
            _take_apart(self, layer)  # what is rotated, or normed, before the attention is not one input of it

    def make_rotary_embedding_caches(self: Any, **_: Any) -> tuple[str, str]:
        kind = getattr(self, "rotary_kind", "")
        names = tuple(f"{name}_{kind}" if kind else name for name in ROTARY_TABLES)
        for name, table in zip(names, tables[kind], strict=True):
            if name not in self.model.graph.initializers:
                self.make_initializer(table, name, to=self.io_dtype)
        return names[0], names[1]

    methods = {
        "get_genai_commit": classmethod(get_genai_commit),
        "is_gqa_supported": is_gqa_supported,
        "is_fused_rope_supported": is_rotated_in_attention,
        "is_local": is_local,
        "make_key_value_cache_shape": make_key_value_cache_shape,
        "make_attention": make_attention,
        "make_attention_input_proj": make_attention_input_proj,
        "make_rope_init": lambda *_: None,
        "make_rotary_embedding_multi_cache": lambda *_: None,
        "make_rotary_embedding_caches": make_rotary_embedding_caches,
    }
    return type(builder_class.__name__, (builder_class,), methods)


def _take_apart(builder: Any, layer: int) -> None:
    """Queries, keys and values of a layer from the one product that they are."""
    name, attributes = f"/model/layers.{layer}/attn/qkv_proj/Split", builder.attention_attrs
    widths = [builder.q_size, builder.kv_size, builder.kv_size]
    outputs = [f"{name}/output_{number}" for number in range(3)]
    shapes = [["batch_size", "sequence_length", width] for width in widths]
    inputs = [attributes["q_path"], f"/model/constants/INT64/{widths}"]
    builder.make_split(name, inputs=inputs, outputs=outputs, dtypes=[builder.io_dtype] * 3, shapes=shapes)
    attributes |= dict(zip(("q_path", "k_path", "v_path"), outputs, strict=True))


def _rows_of_table(builder: Any, switch: int) -> str:
    """Positions as rows of a table whose first `switch` rows are for texts of up to as many tokens; made once."""
    name, positions = "/model/rotary_rows", builder.input_names["position_ids"]
    output = f"{name}/Add/output_0"
    if output in builder.values:
        return output
    dtype = builder.input_types["position_ids"]
    length = f"/model/constants/INT64/{switch}"
    builder.make_reduce_max(f"{name}/ReduceMax", [positions], dtype=dtype, shape=[])
    builder.make_greater_or_equal(f"{name}/GreaterOrEqual", [f"{name}/ReduceMax/output_0", length], shape=[])
    builder.make_cast(f"{name}/Cast", f"{name}/GreaterOrEqual/output_0", dtype=dtype, shape=[])
    builder.make_mul(f"{name}/Mul", [f"{name}/Cast/output_0", length], dtype=dtype, shape=[])
    shape = ["batch_size", "sequence_length"]
    builder.make_add(f"{name}/Add", [f"{name}/Mul/output_0", positions], dtype=dtype, shape=shape)
    return output


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
