"""verify/classification.py: a bundle that is not the classifier it was made from does not pass."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo

from edgetune.runtime.bundle import Bundle
from edgetune.verify.checks import Check, Verification
from edgetune.verify.classification import verify_encoder

LAYER = "classifier.encoder.encoder.layer.1.output"
PARTS = ("dense.packed", "dense.scales", "dense.zero_points", "dense.bias", "LayerNorm.weight")


@pytest.fixture
def verified(exported, texts: list[str], tmp_path: Path) -> Callable[..., Verification]:
    """Verify a copy of a good bundle after `change(bundle)` has had its way with it."""

    def run(change: Callable[[Bundle], object], *, precision: str = "int4") -> Verification:
        built = exported("bert", precision)
        bundle = dataclasses.replace(built.bundle, path=shutil.copytree(built.bundle.path, tmp_path / "copy"))
        changed = change(bundle)
        bundle = changed if isinstance(changed, Bundle) else bundle
        return verify_encoder(dataclasses.replace(built, bundle=bundle), texts)

    return run


def failures(verification: Verification) -> set[str]:
    return {failed.name for failed in verification.failures}


def changed_answers(verification: Verification) -> Check:
    (found,) = [check for check in verification.checks if check.name == "changed answers"]
    return found


@pytest.mark.parametrize("part", PARTS)
def test_a_changed_byte_is_found(verified, part: str) -> None:
    def change(bundle: Bundle) -> None:
        edit(bundle, f"{LAYER}.{part}", lambda data: data[:4] + bytes([data[4] ^ 1]) + data[5:])

    verification = verified(change)
    (failed,) = [failed for failed in verification.failures if failed.name == "weight bytes"]
    assert failed.value == 1
    assert "encoder.layer.1.output" in failed.detail


def test_a_changed_byte_of_the_head_or_of_an_embedding_is_found(verified) -> None:
    def change(bundle: Bundle) -> None:
        edit(bundle, "head.weight", lambda data: bytes([data[0] ^ 1]) + data[1:])
        embedding = "classifier.encoder.embeddings.word_embeddings"
        edit(bundle, f"{embedding}.packed", lambda data: bytes([data[0] ^ 1]) + data[1:])

    (failed,) = [failed for failed in verified(change).failures if failed.name == "weight bytes"]
    assert failed.value == 2


@pytest.mark.slow
def test_a_zeroed_matrix_of_a_float_bundle_is_found_in_the_logits(verified) -> None:
    def change(bundle: Bundle) -> None:
        model = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False)
        matrix = next(item.name for item in model.graph.initializer if list(item.dims) == [72, 36])
        edit(bundle, matrix, lambda data: bytes(len(data)))

    assert failures(verified(change, precision="fp32")) >= {"logits against torch"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_float_bundle_says_what_its_names_do_not_show(verified, precision: str) -> None:
    (found,) = [check for check in verified(lambda _: None, precision=precision).checks if check.name == "weight bytes"]
    assert found.passed
    assert int(found.detail.split()[0]) > 10
    assert "12 matrices without a name of ours show in the logits alone" in found.detail


@pytest.mark.slow
def test_a_float_graph_without_any_of_our_names_does_not_pass(verified) -> None:
    def change(bundle: Bundle) -> None:
        path = bundle.path / "model.onnx"
        model = onnx.load(str(path), load_external_data=False)
        names = {item.name: f"x{number}" for number, item in enumerate(model.graph.initializer)}
        for item in model.graph.initializer:
            item.name = names[item.name]
        for node in model.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
        onnx.save(model, str(path))

    (failed,) = verified(change, precision="fp32").failures
    assert (failed.name, failed.value) == ("weight bytes", float("inf"))
    assert failed.detail.startswith("0 tensors compared")


def test_inputs_wired_wrongly_are_found_in_the_logits(verified) -> None:
    """Query and key of a layer, exchanged with all their bytes."""

    def change(bundle: Bundle) -> None:
        model = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False)
        node = next(node for node in model.graph.node if node.op_type == "MultiHeadAttention")
        node.input[1], node.input[2] = node.input[2], node.input[1]
        onnx.save(model, str(bundle.path / "model.onnx"))

    found = failures(verified(change))
    assert "logits against torch" in found
    assert "weight bytes" not in found


@pytest.mark.parametrize(("count", "is_required"), [(60, True), (40, False)])
def test_changed_answers_decide_however_large_the_encoder_is(
    exported, texts: list[str], monkeypatch: pytest.MonkeyPatch, count: int, is_required: bool
) -> None:
    monkeypatch.setattr("edgetune.verify.classification.ALL_PRODUCTS", 0)
    monkeypatch.setattr("edgetune.verify.classification.LEAST_TOKENS", 1)
    verification = verify_encoder(exported("bert", "int4"), (texts * 2)[:count])
    changed = changed_answers(verification)
    assert changed.is_required is is_required
    assert f"of {min(count, 50)} texts" in changed.detail


def test_answers_that_the_grid_turns_to_unknown_and_back_are_changed(exported, texts: list[str], flipping) -> None:
    """On the int8 grid the labels stay; near a threshold one of two models is sure enough."""
    built = exported("bert", "int8")
    bundle, text = flipping(built.bundle, built.classifier, built.tokenizer, texts)
    asked = [*texts, *[text] * 20]
    assert changed_answers(verify_encoder(built, asked)).passed
    changed = changed_answers(verify_encoder(dataclasses.replace(built, bundle=bundle), asked))
    assert changed.value >= 21
    assert changed.limit == 3
    assert changed.is_required
    assert not changed.passed


def test_another_grid_than_the_manifest_says_is_found(verified) -> None:
    def change(bundle: Bundle) -> Bundle:
        assert bundle.grid is not None
        return dataclasses.replace(bundle, grid=dataclasses.replace(bundle.grid, accuracy_level=1))

    assert "weight bytes" in failures(verified(change))


def test_a_weight_that_the_graph_does_not_hold_is_found(verified) -> None:
    def change(bundle: Bundle) -> None:
        path = bundle.path / "model.onnx"
        path.write_bytes(path.read_bytes().replace(b"layer.1.output.dense.packed", b"layer.7.output.dense.packed"))

    (failed,) = [failed for failed in verified(change).failures if failed.name == "weight bytes"]
    assert failed.value == 2, "one that is ours and not there, one that is there and not ours"


def test_a_tokenizer_with_other_pieces_is_found(verified) -> None:
    def change(bundle: Bundle) -> None:
        path = bundle.path / "tokenizer.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        pieces = values["model"]["vocab"]
        values["model"]["vocab"] = {piece: index for piece, index in pieces.items() if index < len(pieces) // 2}
        path.write_text(json.dumps(values), encoding="utf-8")

    assert "token ids" in failures(verified(change))


def test_another_length_than_training_s_is_found(verified) -> None:
    def change(bundle: Bundle) -> Bundle:
        return dataclasses.replace(bundle, classifier=dataclasses.replace(bundle.classifier_format, max_length=39))

    assert failures(verified(change)) == {"token ids"}


def test_a_truncated_data_file_is_refused_with_a_reason(verified) -> None:
    def change(bundle: Bundle) -> None:
        path = bundle.path / "model.onnx.data"
        path.write_bytes(path.read_bytes()[:1000])

    verification = verified(change)
    assert {"weights", "logits"} <= failures(verification)
    assert all(failed.detail for failed in verification.failures)


def test_without_texts_a_bundle_is_verified_on_one_of_ours(exported) -> None:
    assert verify_encoder(exported("bert"), ["", " "]).failures == ()


def test_the_outcome_can_be_written_as_json(exported, texts: list[str]) -> None:
    values = verify_encoder(exported("bert"), texts[:2]).to_json()
    assert values["passed"] is True
    assert json.loads(json.dumps(values)) == values


def edit(bundle: Bundle, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes of a tensor where they lie: in model.onnx.data, or in model.onnx for a small one."""
    path = bundle.path / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    tensor = next(item for item in model.graph.initializer if item.name == name)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        tensor.raw_data = change(onnx.numpy_helper.to_array(tensor).tobytes())
        assert np.frombuffer(tensor.raw_data, np.uint8).size
        onnx.save(model, str(path))
        return
    info = ExternalDataInfo(tensor)
    data = bytearray((bundle.path / info.location).read_bytes())
    start, end = info.offset or 0, (info.offset or 0) + info.length
    data[start:end] = change(bytes(data[start:end]))
    (bundle.path / info.location).write_bytes(data)
