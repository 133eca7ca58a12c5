"""A decoder's embedding and output head in 8 or 4 bits, frozen: a vector a token, dequantised where it is needed.

Beside a vocabulary of 128k both outweigh what NF4 leaves of a small base, and bitsandbytes keeps them in 16 bits. Here
a lookup dequantises the rows it asks for, the head a part of the vocabulary at a time. `load_base` makes such models.
The value of a weight is what it dequantises to in the compute type: a merge on the trained base takes that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetune.errors import ModelError
from edgetune.model.nf4 import BLOCK_SIZE
from edgetune.model.quiet import load_bitsandbytes
from edgetune.model.weights import Place, read_rows

Kind = Literal["int8", "nf4"]
SCALE_DTYPE = torch.bfloat16
PART_TOKENS = 4096
"""Tokens of the vocabulary whose vectors are dequantised at one time."""


@dataclass(frozen=True)
class Codec:
    """A way to hold vectors: (rows, width) with width a multiple of 64 <-> codes and a scale for each 64 values."""

    codes_dtype: torch.dtype
    codes_a_byte: int
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    """float32 (rows, width) -> codes (rows, width / codes_a_byte), scales (rows, width / 64) in any float type."""
    decode: Callable[[Tensor, Tensor, torch.dtype], Tensor]
    """codes, scales, dtype -> (rows, width) in dtype."""


def _encode_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    blocks = values.view(len(values), -1, BLOCK_SIZE)
    scales = (blocks.abs().amax(2) / 127).to(SCALE_DTYPE)
    steps = blocks / scales.float().clamp(min=torch.finfo(SCALE_DTYPE).tiny)[..., None]
    return steps.round_().clamp_(-127, 127).to(torch.int8).view(len(values), -1), scales


def _decode_int8(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    blocks = codes.view(*scales.shape, BLOCK_SIZE).to(dtype)
    return blocks.mul_(scales.to(dtype)[..., None]).view(codes.shape)


def _encode_nf4(values: Tensor) -> tuple[Tensor, Tensor]:
    load_bitsandbytes()
    import bitsandbytes  # noqa: F401  registers the operators

    codes, scales = torch.ops.bitsandbytes.quantize_4bit(values.contiguous(), BLOCK_SIZE, "nf4", torch.uint8)
    return codes.view(len(values), -1), scales.view(len(values), -1)


def _decode_nf4(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    shape = (len(codes), 2 * codes.shape[1])
    if not len(codes):
        return torch.empty(shape, dtype=dtype, device=codes.device)
    decoded: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
        codes.reshape(-1, 1), scales.float().flatten(), BLOCK_SIZE, "nf4", shape, dtype
    )
    return decoded


CODECS: dict[Kind, Codec] = {
    "int8": Codec(torch.int8, 1, _encode_int8, _decode_int8),
    "nf4": Codec(torch.uint8, 2, _encode_nf4, _decode_nf4),
}


def held_bytes(kind: Kind, tokens: int, width: int) -> int:
    """Bytes of so many vectors of a width, scales included: 1.03 a weight in int8, 0.53 in nf4."""
    blocks = -(-width // BLOCK_SIZE)
    return tokens * blocks * (BLOCK_SIZE // CODECS[kind].codes_a_byte + SCALE_DTYPE.itemsize)


def embedding_as_trained(weight: Tensor, kind: Kind, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The vectors (rows, width) that a quantised embedding or head computes with, in `dtype` and on the CPU.

    Equal, bit for bit, to what `load_base` on the same kind of device dequantises to. Rows are independent.
    """
    vectors = TokenVectors(len(weight), weight.shape[1], kind, dtype, device=device)
    vectors.put(0, weight)
    return torch.cat([part.cpu() for _, part in vectors.parts()])


class TokenVectors(nn.Module):
    """One vector for each token, (tokens, width), in 8 or 4 bits. Empty until `put` has filled all rows."""

    codes: Tensor
    scales: Tensor

    def __init__(
        self, tokens: int, width: int, kind: Kind, dtype: torch.dtype, *, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.shape, self.kind, self.dtype = (tokens, width), kind, dtype
        self._codec, blocks = CODECS[kind], -(-width // BLOCK_SIZE)
        columns = blocks * BLOCK_SIZE // self._codec.codes_a_byte
        codes = torch.empty(tokens, columns, dtype=self._codec.codes_dtype, device=device)
        scales = torch.empty(tokens, blocks, dtype=SCALE_DTYPE, device=device)
        # Not persistent: transformers gives such buffers room on the model's device and looks for them in no file.
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    def put(self, start: int, values: Tensor) -> None:
        """Quantise vectors (rows, width), of any float type, into the rows from `start` on."""
        for at in range(0, len(values), PART_TOKENS):
            part = values[at : at + PART_TOKENS].to(self.codes.device, torch.float32)
            codes, scales = self._codec.encode(F.pad(part, (0, -part.shape[1] % BLOCK_SIZE)))
            self.codes[start + at : start + at + len(part)] = codes
            self.scales[start + at : start + at + len(part)] = scales

    def rows(self, ids: Tensor) -> Tensor:
        """The vectors of tokens (n,) -> (n, width)."""
        return self._codec.decode(self.codes[ids], self.scales[ids], self.dtype)[:, : self.shape[1]]

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """All vectors in order, a part of the vocabulary at a time: its first token, (tokens, width)."""
        for start in range(0, self.shape[0], PART_TOKENS):
            part = slice(start, start + PART_TOKENS)
            yield start, self._codec.decode(self.codes[part], self.scales[part], self.dtype)[:, : self.shape[1]]

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, {self.kind}"


class QuantizedEmbedding(nn.Module):
    """An embedding whose vectors are quantised. What its class does beside looking them up, as Gemma's, stays."""

    def __init__(self, plain: nn.Embedding, vectors: TokenVectors) -> None:
        super().__init__()
        empty = plain.weight.new_empty(0, plain.embedding_dim, dtype=vectors.dtype)
        plain.weight = nn.Parameter(empty, requires_grad=False)
        plain.padding_idx = None  # of gradients only, and out of range for a few rows
        self.plain, self.vectors = plain, vectors

    def forward(self, ids: Tensor) -> Tensor:
        """ids, any shape -> (..., width)."""
        found = {"weight": self.vectors.rows(ids.flatten())}
        places = torch.arange(ids.numel(), device=ids.device).view_as(ids)
        embedded: Tensor = torch.func.functional_call(self.plain, found, (places,))
        return embedded


class QuantizedHead(nn.Module):
    """An output head whose vectors are quantised; without a loss fused to it, it makes all logits as any linear."""

    def __init__(self, vectors: TokenVectors, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.vectors, self.bias = vectors, bias

    def forward(self, states: Tensor) -> Tensor:
        """(..., width) -> (..., tokens) in the vectors' type."""
        logits: Tensor = _Projection.apply(states.to(self.vectors.dtype), self.vectors)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: TokenVectors) -> Tensor:
        ctx.vectors = vectors
        rows = states.reshape(-1, states.shape[-1])
        logits = rows.new_empty(len(rows), vectors.shape[0])
        for start, part in vectors.parts():
            logits[:, start : start + len(part)] = torch.mm(rows, part.t())
            del part  # else it would be there beside the next one
        return logits.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        slopes = gradients[0].reshape(-1, ctx.vectors.shape[0])
        total = torch.zeros(len(slopes), ctx.vectors.shape[1], device=slopes.device)
        for start, part in ctx.vectors.parts():
            total += torch.mm(slopes[:, start : start + len(part)], part)
            del part
        return total.to(slopes.dtype).view(*gradients[0].shape[:-1], -1), None


def with_quantized_ends(kind_of_model: Any, kind: Kind, dtype: torch.dtype) -> type:
    """A transformers class whose `from_pretrained` leaves embedding and head to `fill_ends`: no whole one ever exists.

    Tied ends share their vectors.
    """

    class Quantized(kind_of_model):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, *inputs: Any, **options: Any) -> None:
            super().__init__(config, *inputs, **options)
            embedding, head = self.get_input_embeddings(), self.get_output_embeddings()
            vectors = _empty_vectors(embedding)
            is_tied = bool(self.all_tied_weights_keys)  # type: ignore[has-type]
            own = vectors if is_tied else _empty_vectors(head)
            self.set_input_embeddings(QuantizedEmbedding(embedding, vectors))
            self.set_output_embeddings(QuantizedHead(own, head.bias))
            self._tied_weights_keys = self.all_tied_weights_keys = dict[str, str]()
            self._keys_to_ignore_on_load_missing |= {r"\.plain\.weight$"}

    def _empty_vectors(end: Any) -> TokenVectors:
        tokens, width = end.weight.shape
        return TokenVectors(tokens, width, kind, dtype)

    Quantized.__name__, Quantized.__module__ = kind_of_model.__name__, kind_of_model.__module__
    return Quantized


def fill_ends(model: Any, places: Mapping[str, Place]) -> None:
    """Quantise a model's embedding and head from the tensors of its folder. Raises ModelError if one is not there."""
    found: dict[TokenVectors, list[str]] = {}
    for name, module in end_modules(model).items():
        found.setdefault(module.vectors, []).append(f"{name}.weight")
    for vectors, names in found.items():
        place = next((places[name] for name in names if name in places), None)
        if place is None:
            raise ModelError(
                f"model.embedding_quantization: the base's files hold no {names[0]}", cure="leave this key out"
            )
        if place.shape != vectors.shape:
            raise ModelError(f"{place.file}: {names[0]} is {place.shape}, config.json asks for {vectors.shape}")
        for start in range(0, vectors.shape[0], PART_TOKENS):
            vectors.put(start, read_rows(place, start, min(PART_TOKENS, vectors.shape[0] - start)))


def end_modules(model: Any) -> dict[str, Any]:
    """Embedding and output head of a decoder, by module path."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name: module for name, module in model.named_modules() if any(module is end for end in ends)}


def end_shapes(model: Any) -> list[tuple[int, int]]:
    """Shapes of embedding and output head, as far as a model has them, the head last; of tied ones one shape."""
    ends = [end.weight for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    return list({id(weight): tuple(weight.shape) for weight in ends}.values())


def has_output_head(model: Any) -> bool:
    """Whether a model has logits over its vocabulary: a decoder with its head, not a bare encoder."""
    return model.get_output_embeddings() is not None
