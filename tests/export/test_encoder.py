"""export/encoder.py: what torch makes of a classifier, with our bytes and onnxruntime's operators in it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from edgetune.errors import HardwareError, ModelError
from edgetune.export.encoder import build_encoder
from edgetune.export.read_graph import GraphFile
from edgetune.model.base import ENCODERS
from edgetune.model.classifier import float_copy
from edgetune.quantize.classification import dequantized
from edgetune.runtime.classifier import Classifier as DeviceClassifier
from edgetune.runtime.grid import BundleGrid
from edgetune.verify.classification import Built, verify_encoder
from edgetune.verify.deviation import at_level_0

FAST = ("bert",)
KINDS = [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in ENCODERS]
FUSED = {"bert", "distilbert", "modernbert", "roberta", "xlm-roberta"}
GRID = BundleGrid(bits=4, block_size=32, symmetric=False, accuracy_level=4, head_bits=8)
Exported = Callable[..., Built]


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_is_exported_and_passes_verification(kind: str, exported: Exported, texts: list[str]) -> None:
    verification = verify_encoder(exported(kind), texts)
    assert verification.failures == ()
    assert {check.name for check in verification.checks} >= {"weight bytes", "logits against torch", "token ids"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_equals_torch_with_the_same_integers_at_every_size(kind: str, exported: Exported) -> None:
    """Batches and sequences of one and two too, which torch's exporter likes to take for fixed."""
    built = exported(kind)
    reference = dequantized(built.classifier, built.matrices)
    with at_level_0(built.bundle) as exact:
        session = onnxruntime.InferenceSession(str(exact.path / "model.onnx"))
        for batch, length in ((1, 1), (1, 2), (2, 1), (2, 7), (3, 16), (1, 40), (5, 33)):
            ids, mask = padded_ids(batch, length, pad_id=built.tokenizer.pad_token_id)
            found = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
            with torch.no_grad():
                wanted = reference(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
            # Two float32 orders of summation over some hundred terms, through two layers.
            assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max(), (batch, length)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_one_operator_a_layer_and_every_other_matrix_on_the_grid(kind: str, exported: Exported) -> None:
    graph = GraphFile(exported(kind).bundle.path / "model.onnx")
    kinds = Counter(node.op_type for node in graph.graph)
    assert kinds["MultiHeadAttention"] == (2 if kind in FUSED else 0)
    assert kinds["MatMulNBits"] >= 8
    assert kinds["GatherBlockQuantized"] >= 1
    assert len(graph.float_matmuls()) == 1, "the head"
    assert [value.name for value in graph.graph.inputs] == ["input_ids", "attention_mask"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_other_precisions_pass_verification(precision: str, exported: Exported, texts: list[str]) -> None:
    built = exported("bert", precision)
    assert verify_encoder(built, texts).failures == ()
    assert DeviceClassifier(built.bundle).logits(texts[:3]).dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(16, True), (128, False), (64, True)])
@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_every_grid_passes_verification(
    kind: str, grid: tuple[int, bool], exported: Exported, texts: list[str]
) -> None:
    assert verify_encoder(exported(kind, "int4", *grid), texts).failures == ()


@pytest.mark.slow
def test_float16_takes_half_the_space(exported: Exported) -> None:
    sizes = [(exported("bert", name).bundle.path / "model.onnx.data").stat().st_size for name in ("fp16", "fp32")]
    assert 0.5 < sizes[0] / sizes[1] < 0.55


def test_int4_takes_four_and_five_eighths_bits_a_weight(exported: Exported) -> None:
    """Four of the code, half a one of the bfloat16 scale and an eighth of the zero point, at blocks of 32."""
    bundle, classifier = exported("roberta").bundle, exported("roberta").classifier
    encoder = classifier.encoder
    linear = [module for module in encoder.encoder.modules() if type(module) is torch.nn.Linear]
    on_grid = [module.weight.numel() for module in linear]
    on_grid.append(encoder.embeddings.word_embeddings.weight.numel())
    names = GraphFile(bundle.path / "model.onnx")
    quantised = [name for name in names.names if name.endswith((".packed", ".scales", ".zero_points"))]
    found = sum(names.array(name).nbytes for name in quantised)
    bits_a_weight = 8 * found / sum(on_grid)
    assert 4.6 < bits_a_weight < 4.9  # rows whose number of blocks is odd leave half a byte


def test_small_embeddings_and_the_head_stay_float(exported: Exported) -> None:
    bundle, classifier = exported("bert").bundle, exported("bert").classifier
    graph = GraphFile(bundle.path / "model.onnx")
    positions = graph.array("classifier.encoder.embeddings.position_embeddings.weight")
    np.testing.assert_array_equal(positions, classifier.encoder.embeddings.position_embeddings.weight.detach().numpy())
    head = graph.array("head.weight")
    np.testing.assert_allclose(np.linalg.norm(head, axis=-1), 16.0, rtol=1e-6)


def test_an_unused_pooler_stays_behind(exported: Exported) -> None:
    bundle, classifier = exported("bert").bundle, exported("bert").classifier
    assert classifier.encoder.pooler is not None
    assert not [name for name in GraphFile(bundle.path / "model.onnx").names if "pooler" in name]


def test_the_classifier_stays_as_it_was(exported: Exported, a_classifier) -> None:
    classifier, fresh = exported("bert").classifier, a_classifier("bert")
    float_copy(classifier, torch.float16)
    left, wanted = classifier.state_dict(), fresh.state_dict()
    assert list(left) == list(wanted)
    assert all(torch.equal(left[name], wanted[name]) and left[name].dtype == wanted[name].dtype for name in wanted)
    assert classifier.encoder.config._attn_implementation == fresh.encoder.config._attn_implementation


def test_export_is_silent_repeats_its_bytes_and_tells_nothing_of_this_machine(
    exported, a_classifier, tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    built = exported("bert")
    capfd.readouterr()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        settings = {"precision": "int4", "matrices": built.matrices, "accuracy_level": 4, "max_length": 40}
        build_encoder(a_classifier("bert"), tmp_path, **settings)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / name).read_bytes() == (built.bundle.path / name).read_bytes()
    graph = (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in graph
    assert str(Path(__file__).parent.parent.parent).encode() not in graph


def test_an_old_torch_is_a_hardware_error(a_classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.onnx.ops, "symbolic")
    with pytest.raises(HardwareError, match=r"cannot export encoders.*torch>=2\.8"):
        build_encoder(a_classifier("bert"), tmp_path, precision="fp32", matrices={}, max_length=40)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_encoder_that_torch_cannot_trace_is_named(a_classifier, tmp_path: Path) -> None:
    classifier = a_classifier("bert")
    classifier.encoder.encoder.forward = lambda *_, **__: 1 / 0
    with pytest.raises(ModelError, match="BertModel: torch cannot export this encoder: division by zero"):
        build_encoder(classifier, tmp_path, precision="fp32", matrices={}, max_length=40)
    assert list(tmp_path.iterdir()) == []


def padded_ids(batch: int, length: int, *, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids (batch, length) and their mask; all rows but the first end somewhere before."""
    generator = np.random.default_rng(batch * 100 + length)
    ids = generator.integers(5, 300, (batch, length))
    mask = np.ones_like(ids)
    for row in range(1, batch):
        end = generator.integers(1, length + 1)
        ids[row, end:], mask[row, end:] = pad_id, 0
    return ids, mask
