"""Bundles: written, opened, and what is said when something is wrong with one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from edgetune.errors import BundleError
from edgetune.runtime.bundle import MANIFEST, Bundle, ChatFormat, check_hashes, open_bundle, write_manifest
from edgetune.runtime.grid import BundleGrid


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of a bundle, all of them nonsense."""
    for name in ("genai_config.json", "tokenizer.json", "model.onnx", "model.onnx.data"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    chat = ChatFormat(
        template="{{ bos_token }}", bos_token="<s>", eos_token="</s>", bos_id=1, eos_ids=(2, 5), system="é"
    )
    grid = BundleGrid(bits=4, block_size=32, symmetric=False, accuracy_level=4, head_bits=8)
    return write_manifest(
        Bundle(folder, "a", "int4", grid, chat, context_length=64, provenance={"base": "b"}, verified={"passed": True})
    )


def test_a_bundle_opens_equal_to_what_was_written(bundle: Bundle) -> None:
    assert open_bundle(bundle.path) == bundle
    assert set(bundle.files) == {"genai_config.json", "tokenizer.json", "model.onnx", "model.onnx.data"}
    assert bundle.size_bytes == sum((bundle.path / name).stat().st_size for name in bundle.files)


def test_a_manifest_from_before_there_were_classifiers_opens(bundle: Bundle) -> None:
    values = json.loads((bundle.path / MANIFEST).read_text())
    assert values["format"] == 1
    del values["classifier"]
    (bundle.path / MANIFEST).write_text(json.dumps(values))
    assert open_bundle(bundle.path) == bundle
    assert open_bundle(bundle.path).chat_format == bundle.chat


def test_a_decoder_is_called_by_its_task_in_recipes_and_one_that_says_causal_lm_opens(bundle: Bundle) -> None:
    values = json.loads((bundle.path / MANIFEST).read_text())
    assert values["task"] == "generation"
    (bundle.path / MANIFEST).write_text(json.dumps({**values, "task": "causal-lm"}))
    assert open_bundle(bundle.path) == bundle


def test_a_verification_is_added_without_reading_the_files_again(bundle: Bundle) -> None:
    (bundle.path / "model.onnx").write_text("model.ONNX")
    write_manifest(dataclasses.replace(bundle, verified={"passed": False}))
    opened = open_bundle(bundle.path)
    assert opened.verified == {"passed": False}
    assert opened.files == bundle.files


def test_a_truncated_file_is_named_with_both_sizes(bundle: Bundle) -> None:
    (bundle.path / "model.onnx.data").write_text("model")
    with pytest.raises(BundleError, match=r"model\.onnx\.data has 5 bytes instead of 15; copy or export it again"):
        open_bundle(bundle.path)


def test_all_missing_files_are_named_at_once(bundle: Bundle) -> None:
    (bundle.path / "model.onnx").unlink()
    (bundle.path / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing, tokenizer\.json is missing"):
        open_bundle(bundle.path)


def test_changed_bytes_are_found_by_their_hash(bundle: Bundle) -> None:
    check_hashes(bundle)
    (bundle.path / "model.onnx").write_text("model.ONNX")
    with pytest.raises(BundleError, match=r"model\.onnx: not the bytes that were exported"):
        check_hashes(open_bundle(bundle.path))


CHAT = {"template": None, "bos_token": None, "eos_token": None, "bos_id": None, "eos_ids": [2], "system": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format version 99, this EdgeTune reads version 1"),
        ({"task": "sing"}, "unknown task 'sing'; this EdgeTune runs generation, classification"),
        ({"task": ["generation"]}, "unknown task"),
        ({"chat": None}, "damaged"),
        ({"context_length": "long"}, "damaged"),
        ({"context_length": 0}, "damaged.*context_length is 0"),
        ({"chat": {**CHAT, "template": 5}}, "damaged.*chat.template is 5"),
        ({"chat": {**CHAT, "bos_id": "x"}}, "damaged.*chat.bos_id is 'x'"),
        ({"chat": {**CHAT, "eos_ids": ["2"]}}, "damaged.*chat.eos_ids is"),
        ({"chat": 5}, "damaged: chat is 5"),
        ({"chat": {**CHAT, "eos_ids": 5}}, "damaged: chat.eos_ids is 5"),
        ({"chat": {**CHAT, "eos_ids": [-1]}}, "damaged.*chat.eos_ids is"),
        ({"chat": {**CHAT, "bos_id": 2**63}}, "damaged.*chat.bos_id is"),
        ({"chat": {**CHAT, "bos_id": True}}, "damaged.*chat.bos_id is True"),
        ({"context_length": 2**31}, "damaged.*context_length is 2147483648"),
        ({"files": {"../../x": {"size_bytes": 1, "sha256": ""}}}, "leaves the folder"),
        ({"files": {}}, "genai_config.json is not listed"),
        ({"files": {"model.onnx": {"size_bytes": 3 * 2**30, "sha256": ""}}}, "10 bytes instead of 3221225472"),
        ({"files": {"a": {"size_bytes": -1, "sha256": ""}}}, r"files\.a\.size_bytes: -1 must be at least 0"),
        ({"files": ["a"]}, r"damaged: files is \['a'\]"),
        ({"files": {"a": {"size_bytes": "1", "sha256": ""}}}, r"damaged: files\.a\.size_bytes: '1' is not an integer"),
        ({"grid": {"bits": 4}}, r"damaged: grid\.block_size: missing"),
        ({"grid": True}, "damaged: grid is True"),
        ({"name": None}, "damaged: name is None"),
        ({"verified": "yes"}, "damaged: verified is 'yes'"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(bundle: Bundle, change: dict, message: str) -> None:
    values = json.loads((bundle.path / MANIFEST).read_text())
    (bundle.path / MANIFEST).write_text(json.dumps({**values, **change}))
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle.path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\x00", "[" * 100_000])
def test_a_damaged_manifest_is_one_line(bundle: Bundle, text: str) -> None:
    (bundle.path / MANIFEST).write_text(text)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle.path)
    assert "\n" not in str(caught.value)
    assert caught.value.cure


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_config.json", "is an adapter, not a bundle; `edgetune merge`, then `edgetune export` makes a bundle"),
        ("config.json", "is a Hugging Face model folder, not a bundle; `edgetune export` makes a bundle of it"),
        ("genai_config.json", "is an onnxruntime-genai folder without edgetune.json"),
        ("recipe.toml", "is a run folder without a bundle"),
        ("bundle/edgetune.json", "is a run folder; its bundle is"),
        ("notes.txt", "holds no edgetune.json"),
    ],
)
def test_another_kind_of_folder_is_called_by_its_name(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path)


@pytest.mark.parametrize(("name", "kind"), [("adapter_config.json", "an adapter"), ("config.json", "a Hugging Face")])
def test_the_record_that_stages_leave_makes_no_bundle_of_their_folder(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text("{}")
    (tmp_path / MANIFEST).write_text('{"base": "edgetune:nano"}')
    with pytest.raises(BundleError, match=f"is {kind}.*, not a bundle"):
        open_bundle(tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        open_bundle(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="is a file, not a bundle"):
        open_bundle(tmp_path / "file")


def test_a_bundle_may_be_moved(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.copytree(bundle.path, place)
    check_hashes(open_bundle(place))
