"""What a recipe's bundle will be on the device, from config.json alone: bytes, peak memory, tokens a second.

The constants are fitted to bundles of 6 M and 125 M parameters, benchmarks/results/decode.json and decode_nano.json;
of those the estimates are within 15 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.model.base import base_folder, empty_model
from edgetune.model.config import context_length
from edgetune.model.embedding import end_shapes, has_output_head
from edgetune.model.nf4 import quantized_linears
from edgetune.quantize.precisions import HELD_SCALE_BYTES, PRECISIONS, STORED_SCALE_BYTES
from edgetune.recipe import ExportTable, Recipe

RUNTIME_BYTES = 74 * 1024**2
"""Resident memory of Python with onnxruntime-genai and a bundle of no weights."""
COPIES = 1.55
"""Bytes in memory of a byte of weights: kernels keep some of them in an order of their own."""
BANDWIDTH_SHARE = 0.42
"""Of the memory's bandwidth, what decoding reaches."""
LAYER_S = 7e-6
"""Seconds of a layer and token beside reading its weights."""
CACHE_TOKENS = 256
"""Tokens that the cache of keys and values is counted for."""


@dataclass(frozen=True)
class OnDevice:
    """An estimate of a bundle."""

    bundle_bytes: int
    peak_bytes: int
    """Resident memory of a process that answers; a decoder's with CACHE_TOKENS tokens."""
    read_bytes: int
    """Weights read for each token."""
    layers: int

    def tokens_per_s(self, bandwidth_bytes_per_s: float) -> float:
        """Decoding speed, batch 1, of a device that reads its memory so fast."""
        return 1 / (self.read_bytes / (BANDWIDTH_SHARE * bandwidth_bytes_per_s) + self.layers * LAYER_S)


def expect_on_device(recipe: Recipe) -> OnDevice:
    """The bundle of a recipe. Raises ModelError."""
    table = recipe.model
    path = base_folder(table)
    model = empty_model(path, trust_remote_code=table.trust_remote_code)
    config, export = model.config.get_text_config(), recipe.export
    bits, float_bytes = PRECISIONS[export.precision].bits or 8, PRECISIONS[export.precision].float_bytes
    head_bits = 0 if recipe.is_idle("export.head_bits") else export.head_bits
    linears = [module.weight.shape for module in quantized_linears(model).values()]
    ends, is_decoder = end_shapes(model), has_output_head(model)
    in_layers = sum(_matrix_bytes(shape, export, bits) for shape in linears)
    in_ends = [_matrix_bytes(shape, export, max(head_bits, bits)) for shape in ends]
    counted = sum(rows * columns for rows, columns in [*linears, *ends])
    vectors = float_bytes * (sum(parameter.numel() for parameter in model.parameters()) - counted)
    # A word's vector is one row of the embedding; the head, and a tied embedding as one, is read whole.
    read = in_layers + vectors + (in_ends[-1] if is_decoder else 0)
    weights = in_layers + sum(in_ends) + vectors
    scales = sum(_scales(shape, export) for shape in [*linears, *ends])
    stored = weights - (HELD_SCALE_BYTES - STORED_SCALE_BYTES) * scales
    texts = sum(file.stat().st_size for file in path.glob("tokenizer*.json"))
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * 4 * CACHE_TOKENS * heads * width * config.num_hidden_layers if is_decoder else 0
    if is_decoder:  # cosines and sines of half a head for each position
        stored += float_bytes * context_length(config.to_dict(), export) * width
    peak = RUNTIME_BYTES + round(COPIES * weights) + cache
    return OnDevice(stored + texts, peak, read, config.num_hidden_layers)


def _matrix_bytes(shape: tuple[int, int], export: ExportTable, bits: int) -> int:
    """Codes, scales and zero points of a matrix on the grid of [export], or its floats, as the runtime holds them."""
    rows, columns = shape
    precision = PRECISIONS[export.precision]
    if precision.bits is None:
        return rows * columns * precision.float_bytes
    blocks = -(-columns // export.block_size)
    zero_points = 0 if export.symmetric else -(-blocks * bits // 8)
    scales = HELD_SCALE_BYTES * _scales(shape, export)
    return rows * (blocks * (export.block_size * bits // 8) + zero_points) + scales


def _scales(shape: tuple[int, int], export: ExportTable) -> int:
    """How many a matrix has on the grid of [export]; none as floats."""
    rows, columns = shape
    return 0 if PRECISIONS[export.precision].bits is None else rows * -(-columns // export.block_size)
