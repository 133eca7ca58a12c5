"""safetensors files without loading them: which tensor lies where, is all of it whole, one tensor at a time.

Tensors are read and written by plain file calls, not mapped: memory holds the one tensor at hand and nothing else.
Source of the format: huggingface.co/docs/safetensors (8 bytes header length, JSON header, then the bytes).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from edgetune.errors import ModelError
from edgetune.files import read_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack")
MAX_HEADER_BYTES = 100_000_000
EMBEDDING_TENSOR = "model.embed_tokens.weight"
HEAD_TENSOR = "lm_head.weight"
"""A decoder's embedding and output head in a checkpoint; tied, the first is both."""


@dataclass(frozen=True)
class Place:
    """Where one tensor lies: `start` counts bytes from the beginning of the file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size_bytes: int


def name_folder(folder: Path) -> tuple[str, str] | None:
    """What a folder is that is no model's but EdgeTune knows, and what to give instead."""
    if (folder / "adapter_config.json").is_file():
        return "is an adapter", "give its base in model.base, and the adapter in lora.init_from"
    if (folder / "run.json").is_file() and (folder / "recipe.toml").is_file():
        return "is a run folder", f"give its merged model, {folder / 'merged'}, or the base it was trained on"
    if (folder / "edgetune.json").is_file() and any(folder.glob("*.onnx")):
        return "is a bundle, which runs and cannot be trained", "give the base or merged model that it was made from"
    if gguf := next(folder.glob("*.gguf"), None):
        return f"holds {gguf.name}, a GGUF file", f"give the file itself: {gguf}"
    return None


def find_tensors(folder: Path) -> dict[str, Place]:
    """Every tensor of a model folder, from the headers of its one file or its shards.

    Raises ModelError if there are no safetensors, a shard of the index is missing, or a file is truncated or corrupted.
    """
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return read_header(folder / SINGLE)
        raise _no_weights(folder)
    files = read_json(index, ModelError, cure="fetch the base again").get("weight_map")
    if not isinstance(files, dict):
        raise ModelError(f"{index}: no weight_map can be read from it", cure="fetch the base again")
    wanted = {name: str(file) for name, file in files.items()}
    missing = sorted({file for file in wanted.values() if not (folder / Path(file).name).is_file()})
    if missing:
        raise ModelError(f"{folder}: {', '.join(missing)} missing, named in {INDEX}", cure="fetch the base again")
    places: dict[str, Place] = {}
    for file in sorted(set(wanted.values())):
        places |= read_header(folder / Path(file).name)
    lost = sorted(set(wanted) - set(places))
    if lost:
        raise ModelError(f"{folder}: tensor {lost[0]} is named in {INDEX} but is in no shard", cure="fetch it again")
    return places


def read_header(path: Path) -> dict[str, Place]:
    """Every tensor of one safetensors file. Raises ModelError if the header is damaged or does not fit the file."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, file_bytes - 8):
                raise _corrupted(path, "its header does not fit the file")
            header = json.loads(file.read(length))
        places = {
            str(name): _place(path, entry, offset=8 + length)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _corrupted(path, "its header is damaged") from None
    end = 8 + length
    for place in sorted(places.values(), key=lambda place: (place.start, place.size_bytes)):
        if place.start != end:
            raise _corrupted(path, "its tensors overlap or leave holes")
        end += place.size_bytes
    if end != file_bytes:
        raise _corrupted(path, f"it has {file_bytes:,} bytes, its header speaks of {end:,}")
    return places


def read_rows(place: Place, start: int, count: int) -> Tensor:
    """Some rows (count, ...) of one tensor, from `start` on, as `read_tensor` gives all of them."""
    row_bytes = place.size_bytes // place.shape[0] if place.shape[0] else 0
    shape = (count, *place.shape[1:])
    return read_tensor(replace(place, shape=shape, start=place.start + start * row_bytes, size_bytes=count * row_bytes))


def read_tensor(place: Place) -> Tensor:
    """One tensor, on the CPU, in the type of the file. Raises ModelError if the file cannot be read."""
    buffer = bytearray(place.size_bytes)
    try:
        with place.file.open("rb") as file:
            file.seek(place.start)
            if file.readinto(buffer) != place.size_bytes:
                raise _corrupted(place.file, "it ends too early")
    except OSError as error:
        raise ModelError(f"{place.file}: cannot be read: {error.strerror}") from None
    if not buffer:
        return torch.empty(place.shape, dtype=place.dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(place.dtype).view(place.shape)


class Writer:
    """Writes one safetensors file tensor by tensor, in the order of the names and shapes it was given."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self._left = list(tensors.items())
        self._file: BinaryIO = path.open("wb")
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in tensors.items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, tensor: Tensor) -> None:
        """The next tensor; its type and shape must be the announced ones."""
        name, (dtype, shape) = self._left.pop(0)
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} instead of {dtype} {shape}")
        if tensor.numel():
            self._file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)

    def close(self) -> None:
        self._file.close()
        if self._left:
            raise ValueError(f"{len(self._left)} tensors were announced and not written")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def hash_files(files: Iterable[Path]) -> str:
    """SHA-256 over names and bytes of files, in order of their names, hex."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _place(path: Path, entry: Mapping[str, Any], *, offset: int) -> Place:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ModelError(f"{path}: holds tensors of type {entry['dtype']}", cure="give a 16-bit or 32-bit model")
    shape = tuple(int(size) for size in entry["shape"])
    start, end = (int(value) for value in entry["data_offsets"])
    if min((0, start, *shape)) < 0 or end - start != math.prod(shape) * dtype.itemsize:
        raise _corrupted(path, "a shape in its header does not fit its bytes")
    return Place(path, dtype, shape, offset + start, end - start)


def _no_weights(folder: Path) -> ModelError:
    unsafe = sorted(
        path.name for pattern in UNSAFE for path in folder.glob(pattern) if path.name != "training_args.bin"
    )
    if unsafe:
        return ModelError(
            f"{folder}: only {unsafe[0]}, a format that can run code when it is read; EdgeTune reads safetensors only",
            cure="convert it where you trust it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)",
        )
    what, cure = name_folder(folder) or ("", "give a folder with the model's safetensors weights")
    return ModelError(f"{folder}: {what or f'no {SINGLE} and no {INDEX}'}", cure=cure)


def _corrupted(path: Path, why: str) -> ModelError:
    return ModelError(f"{path}: corrupted or truncated: {why}", cure="fetch or copy the file again")
