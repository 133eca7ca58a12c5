"""Files that are whole or not there: edgetune/files.py."""

from __future__ import annotations

import os

import pytest

from edgetune.errors import ModelError, RunError
from edgetune.files import atomic_file, atomic_folder, read_json, read_text, write_json


def _fail_inside(block, *, write):
    with block as temporary:
        write(temporary)
        raise ValueError("stop")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="stop"):
        _fail_inside(atomic_file(path), write=lambda temporary: temporary.write_text("half"))
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "bundle"
    with atomic_folder(folder) as temporary:
        (temporary / "old").write_text("1")
    with pytest.raises(ValueError, match="stop"):
        _fail_inside(atomic_folder(folder), write=lambda temporary: (temporary / "new").write_text("2"))
    assert [item.name for item in folder.iterdir()] == ["old"]
    with atomic_folder(folder) as temporary:
        (temporary / "new").write_text("2")
    assert [item.name for item in folder.iterdir()] == ["new"]
    assert [item.name for item in tmp_path.iterdir()] == ["bundle"]


def test_files_are_on_the_disk_before_they_take_their_place(tmp_path, monkeypatch):
    """What a power cut leaves is the old or the new one. Elsewhere tests do not wait for the disk, see conftest.py."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, path.exists())))
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    assert synced == [(path.stat().st_ino, False)]
    synced.clear()
    path = tmp_path / "bundle"
    with atomic_folder(path) as temporary:
        (temporary / "part").mkdir()
        for name in ("a", "part/b"):
            (temporary / name).write_text(name)
    assert sorted(synced) == sorted(((path / name).stat().st_ino, False) for name in ("a", "part/b"))


def test_a_full_disk_is_one_clear_error(tmp_path):
    with pytest.raises(RunError, match="cannot be written: No space left"), atomic_file(tmp_path / "a"):
        raise OSError(28, "No space left on device")


def test_a_full_disk_that_a_library_meets_is_the_same_error(tmp_path):
    said = "Error while serializing: I/O error: No space left on device (os error 28)"  # safetensors 0.6
    with (
        pytest.raises(RunError, match="b: cannot be written: No space left on device; free some space"),
        atomic_folder(tmp_path / "b"),
    ):
        raise RuntimeError(said)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read: Expecting value"),
        (b"\xff", "cannot be read: 'utf-8' codec"),
        (b'{"a":' * 100_000, "cannot be read: nested too deeply"),
        (b"1" * 5_000, "cannot be read: Exceeds the limit"),
        (b"[]", "holds no JSON object"),
    ],
)
def test_json_that_cannot_be_read_is_one_line_of_the_kind_asked_for(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"a.json: {reason}[^\n]*; copy it$"):
        read_json(path, ModelError, cure="copy it")


def test_a_folder_and_nothing_in_place_of_a_json_file_are_named(tmp_path):
    with pytest.raises(RunError, match="cannot be read: Is a directory"):
        read_json(tmp_path)
    with pytest.raises(RunError, match=r"b\.json: no such file"):
        read_json(tmp_path / "b.json")


def test_a_text_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    (tmp_path / "whole.txt").write_text("für uns", encoding="utf-8")
    assert read_text(tmp_path / "whole.txt") == "für uns"
    (tmp_path / "latin.txt").write_bytes(b"f\xfcr uns")
    for name, problem in {"latin.txt": "cannot be read", "none.txt": "no such file", "": "cannot be read"}.items():
        with pytest.raises(ModelError, match=problem) as raised:
            read_text(tmp_path / name, ModelError, cure="copy it")
        assert raised.value.cure == "copy it"
