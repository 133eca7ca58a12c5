"""export/stored_scales.py: bfloat16 in the file, float32 once onnxruntime has opened it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from graph_files import write_float32_scales

from edgetune.bundle.generation import build_bundle
from edgetune.export.read_graph import GraphFile
from edgetune.export.stored_scales import SCALES
from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe
from edgetune.runtime.logits import Logits
from edgetune.verify.deviation import at_level_0

IDS = [5, 70, 71, 72, 9, 130]


def opened(path: Path, to: Path) -> GraphFile:
    """A graph as onnxruntime has it once it is opened."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(to)
    options.log_severity_level = 3  # it warns that the file is for this machine
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return GraphFile(to)


def check_folded(path: Path, folder: Path) -> None:
    """Every Cast of scales is in the file, and none is left when it is opened."""
    written, found = GraphFile(path), opened(path, folder / "opened.onnx")
    names = {name for _, (_, name, *_), _ in written.grid_nodes()}
    assert len(names) >= 4
    assert {written.array(name).dtype.name for name in names} == {"bfloat16"}
    scales = [node.inputs[SCALES] for node, _, _ in found.grid_nodes()]
    assert len(scales) >= len(names)
    assert all(value.is_initializer() and value.dtype == ir.DataType.FLOAT for value in scales)
    assert not [name for name in names if name in found.names]


@pytest.fixture(scope="module")
def built(a_decoder, tmp_path_factory):
    """Precision -> a decoder's bundle, made once."""

    @cache
    def make(precision: str):
        table = ExportTable(precision=precision, block_size=32, calibration_rows=0, repair_steps=0)
        recipe = Recipe(ModelTable("tiny"), DataTable("x"), export=table)
        return build_bundle(a_decoder(), tmp_path_factory.mktemp(precision), recipe, is_chat=True)[0]

    return make


@pytest.mark.parametrize("precision", ["int2", "int4", "int8"])
def test_onnxruntime_folds_the_casts_of_a_decoder(precision, built, tmp_path):
    check_folded(built(precision).path / "model.onnx", tmp_path)


def test_and_where_activations_are_not_rounded(built, tmp_path):
    with at_level_0(built("int4")) as exact:
        check_folded(exact.path / "model.onnx", tmp_path)


def test_and_those_of_a_classifier(exported, tmp_path):
    check_folded(exported("bert").bundle.path / "model.onnx", tmp_path)


def test_logits_are_those_with_float32_scales(built):
    bundle = built("int4")
    found = Logits(bundle).logits(IDS)
    write_float32_scales(bundle.path / "model.onnx")
    np.testing.assert_array_equal(Logits(bundle).logits(IDS), found)
