"""A checkpoint that cannot be read: edgetune/train/checkpoint.py. What a good one is worth: test_resume.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgetune.errors import RunError
from edgetune.run_dir import RunDir
from edgetune.train.checkpoint import newest, save
from edgetune.train.state import State


@pytest.fixture
def model() -> torch.nn.Linear:
    return torch.nn.Linear(2, 2)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["optimizer.pt", "adapter.safetensors", "state.json"])
@pytest.mark.parametrize("garbage", [b"", b"garbage\n", b"{}", bytes(4096), b"\x80\x02r", b"PK\x03\x04" * 99])
def test_garbage_in_any_file_is_named_with_a_cure_and_nothing_is_deleted(
    model: torch.nn.Linear, tmp_path: Path, name: str, garbage: bytes
) -> None:
    run_dir = RunDir(tmp_path)
    optimizer = torch.optim.AdamW(model.parameters())
    folder = save(run_dir, State(step=1), model, optimizer, inputs="a")
    (folder / name).write_bytes(garbage)
    before = files(tmp_path)
    with pytest.raises(RunError, match=rf"step-00000001.{name}: cannot be read: .*; start the run anew with --force$"):
        newest(run_dir, inputs="a")
    assert files(tmp_path) == before


def test_the_text_of_torch_which_advises_to_read_without_its_guard_is_not_shown(
    model: torch.nn.Linear, tmp_path: Path
) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    folder = save(RunDir(tmp_path), State(step=1), model, optimizer, inputs="a")
    (folder / "optimizer.pt").write_bytes(b"garbage\n")
    with pytest.raises(RunError) as caught:
        newest(RunDir(tmp_path), inputs="a")
    assert "weights_only" not in str(caught.value)


def test_a_file_that_is_gone_is_named(model: torch.nn.Linear, tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    folder = save(RunDir(tmp_path), State(step=1), model, optimizer, inputs="a")
    (folder / "adapter.safetensors").unlink()
    with pytest.raises(RunError, match=r"adapter\.safetensors: cannot be read: no such file"):
        newest(RunDir(tmp_path), inputs="a")
