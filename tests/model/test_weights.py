from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetune.errors import ModelError
from edgetune.model.weights import Writer, find_tensors, read_header, read_tensor


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a": torch.randn(3, 5),
        "b": torch.randn(4).bfloat16(),
        "c": torch.arange(6).view(2, 3),
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 4),
    }


def test_tensors_are_read_as_safetensors_reads_them(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    places = find_tensors(tmp_path)
    assert set(places) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(read_tensor(places[name]), tensor)


def test_tensors_are_written_so_that_safetensors_reads_them(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with Writer(path, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}) as writer:
        for tensor in tensors.values():
            writer.write(tensor)
    read = load_file(path)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_tensor_of_another_shape_than_announced_is_not_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="instead of"),
        Writer(tmp_path / "x.safetensors", {"a": (torch.float32, (2,))}) as writer,
    ):
        writer.write(torch.zeros(3))


@pytest.mark.parametrize("kept", [0, 5, 60, 0.5, -1])
def test_a_truncated_file_is_refused(tiny_base: Path, tmp_path: Path, kept: float) -> None:
    data = (tiny_base / "model.safetensors").read_bytes()
    cut = int(len(data) * kept) if isinstance(kept, float) else kept
    (tmp_path / "model.safetensors").write_bytes(data[:cut])
    with pytest.raises(ModelError, match="corrupted or truncated"):
        find_tensors(tmp_path)


@pytest.mark.parametrize("change", ["shape", "offsets", "garbage", "length"])
def test_a_corrupted_header_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(4)}, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if change == "shape":
        header["a"]["shape"] = [2, 3]
    elif change == "offsets":
        header["a"]["data_offsets"] = header["b"]["data_offsets"]
    text = b"\xff" * length if change == "garbage" else json.dumps(header).encode()
    size = 2**60 if change == "length" else len(text)
    path.write_bytes(size.to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(ModelError, match="corrupted or truncated"):
        read_header(path)


def test_shards_are_found_and_a_missing_one_is_named(tiny_base: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_base / "model.safetensors")
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(find_tensors(tmp_path)) == set(weights)

    shutil.move(tmp_path / "model-00002-of-00002.safetensors", tmp_path / "away")
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors missing"):
        find_tensors(tmp_path)


def test_a_tensor_that_is_in_no_shard_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="tensor b"):
        find_tensors(tmp_path)
