"""bundle/variants.py: what the ledger compares the bundle with computes with the bundle's own numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgetune.bundle import variants
from edgetune.bundle.generation import build_bundle
from edgetune.bundle.variants import exact
from edgetune.runtime.bundle import GRAPH
from edgetune.runtime.logits import Logits
from edgetune.verify.deviation import at_level_0

IDS = [5, 70, 71, 72, 9, 130]


@pytest.fixture(scope="module")
def bundle(a_decoder, tmp_path_factory):
    from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe

    table = ExportTable(calibration_rows=0, repair_steps=0, head_bits=8)
    recipe = Recipe(ModelTable("tiny"), DataTable("x"), export=table)
    return build_bundle(a_decoder(), tmp_path_factory.mktemp("bundle"), recipe, is_chat=True)[0]


def products(bundle, kind):
    return sum(
        node.op_type == kind for node in onnx.load(str(bundle.path / GRAPH), load_external_data=False).graph.node
    )


def test_the_exact_variant_holds_the_head_unpacked_and_answers_as_level_0_does(bundle):
    with at_level_0(bundle) as packed, exact(bundle) as unpacked:
        assert products(packed, "MatMulNBits") == products(unpacked, "MatMulNBits") + 1
        expected, found = Logits(packed).logits(IDS), Logits(unpacked).logits(IDS)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(Logits(bundle).logits(IDS) - expected).max() > 1e-4 * np.abs(expected).max()


def test_a_head_too_large_for_the_graph_stays_packed(bundle, monkeypatch):
    monkeypatch.setattr(variants, "MOST_UNPACKED_BYTES", 1000)
    with at_level_0(bundle) as packed, exact(bundle) as unpacked:
        assert products(packed, "MatMulNBits") == products(unpacked, "MatMulNBits")
