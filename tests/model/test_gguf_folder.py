"""A .gguf file as a base: the file's weights, tokenizer and template, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgetune.errors import MissingExtraError, ModelError
from edgetune.files import read_json
from edgetune.model import gguf_folder as module
from edgetune.model.base import load_merged, load_tokenizer, resolve_base
from edgetune.model.gguf_folder import RECORD, gguf_note
from edgetune.progress import silent

pytest.importorskip("gguf")
from benchmarks.gguf_model import write_gguf

TEXT = "turn on the lamp"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def in_process(monkeypatch) -> None:
    """Without a process of its own, which would load torch once more."""
    monkeypatch.setattr(module, "ask", lambda _, request, *, progress, **__: module.make(request, progress or silent))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("kind", "dtype", "error"), [("F32", torch.float32, 0), ("F16", torch.float16, 1e-3), ("Q8_0", torch.float16, 0.02)]
)
def test_the_model_is_that_of_the_file(tiny_base, tmp_path, kind, dtype, error):
    file = write_gguf(tiny_base, tmp_path / "tiny.gguf", kind=kind)
    folder = resolve_base(str(file))
    made, original = load_merged(folder), load_merged(tiny_base)
    ids = torch.tensor([load_tokenizer(tiny_base)(TEXT)["input_ids"]])
    with torch.no_grad():
        found, wanted = made(input_ids=ids).logits, original(input_ids=ids).logits
    assert float((found - wanted).norm() / wanted.norm()) <= error + 1e-6
    assert read_json(folder / "config.json")["dtype"] == str(dtype).removeprefix("torch.")
    assert gguf_note(folder) is None


@pytest.mark.usefixtures("in_process")
def test_tokenizer_and_template_are_those_of_the_file(tiny_base, tmp_path):
    folder = resolve_base(str(write_gguf(tiny_base, tmp_path / "tiny.gguf")))
    made, original = load_tokenizer(folder), load_tokenizer(tiny_base)
    assert made(TEXT)["input_ids"] == original(TEXT)["input_ids"]
    assert (made.eos_token, made.chat_template) == (original.eos_token, original.chat_template)


@pytest.mark.usefixtures("in_process")
def test_a_file_is_read_once_and_anew_when_it_changed(tiny_base, tmp_path):
    file, told = write_gguf(tiny_base, tmp_path / "tiny.gguf"), []
    first = resolve_base(str(file), progress=told.append)
    assert [event["message"] for event in told] == [f"{file}: dequantising it into {first}, which is done once"]
    assert resolve_base(str(file), progress=told.append) == first
    assert len(told) == 1
    marked = first / RECORD
    before = marked.stat().st_mtime_ns
    assert resolve_base(str(file)) == first
    assert marked.stat().st_mtime_ns == before
    write_gguf(tiny_base, file, kind="F16")
    assert resolve_base(str(file)) != first


@pytest.mark.usefixtures("in_process")
def test_weights_that_were_rounded_are_told_of(tiny_base, tmp_path):
    folder = resolve_base(str(write_gguf(tiny_base, tmp_path / "tiny.Q4_0.gguf", kind="Q4_0")))
    assert gguf_note(folder).startswith("tiny.Q4_0.gguf: its weights were rounded to Q4_0 once")
    assert read_json(folder / RECORD)["weights"]["Q4_0"] > 0


@pytest.mark.usefixtures("in_process")
def test_an_architecture_that_is_not_known_is_named_and_nothing_is_left(tiny_base, tmp_path, cache):
    file = write_gguf(tiny_base, tmp_path / "tiny.gguf", architecture="nonesuch")
    with pytest.raises(ModelError, match=r"tiny\.gguf: cannot be read as a base: .*nonesuch"):
        resolve_base(str(file))
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("in_process")
def test_a_file_that_ends_in_the_middle_is_one_line(tiny_base, tmp_path):
    file = write_gguf(tiny_base, tmp_path / "tiny.gguf")
    data = file.read_bytes()
    for length in (4, 100, len(data) // 2):
        file.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"tiny\.gguf: cannot be read"):
            resolve_base(str(file))


def test_an_error_of_the_process_that_reads_is_an_error_here(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + np.zeros(64, np.uint8).tobytes())
    with pytest.raises(ModelError, match=r"m\.gguf: cannot be read"):
        resolve_base(str(tmp_path / "m.gguf"))


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(ModelError, match=r"missing\.gguf: no such file; give the path"):
        resolve_base(str(tmp_path / "missing.gguf"))
    with pytest.raises(ModelError, match=r"^org/missing\.gguf: no such file"):
        resolve_base("org/missing.gguf")


def test_a_cache_that_cannot_be_written_is_told_with_its_variable(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"file/gguf: cannot be written: .*; set EDGETUNE_CACHE to a folder"):
        resolve_base(str(tmp_path / "m.gguf"))


def test_without_the_library_one_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"edgetune\[gguf\]"):
        resolve_base(str(tmp_path / "m.gguf"))
