"""verify/lengths.py: a graph that computes something else at some length is found, before a training too."""

import dataclasses
import json

import onnx
import pytest
import torch
from small_models import THETA, WINDOW, WINDOWED, graph_of

from edgetune.bundle.generation import export_folder
from edgetune.errors import ModelError
from edgetune.verify.lengths import attention_checks, check_computable


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_verification_goes_beyond_the_window(a_decoder, a_recipe, prompts, tmp_path, precision):
    folder = a_decoder("Mistral", sliding_window=100)
    recipe = a_recipe(precision=precision, method="rtn")
    checks = export_folder(folder, tmp_path / "bundle", recipe, prompts=prompts).verification.checks
    found = {check.name: check for check in checks}
    assert found["logits beyond 100 tokens"].detail == "the last 16 of 116 tokens against torch"
    assert found["attention windows"].detail == "2 of 2 layers have one"
    assert found["rotary tables"].value < 1e-3


def test_what_would_take_the_model_too_long_is_verified_on_a_small_one(
    a_decoder, a_recipe, prompts, tmp_path, monkeypatch
):
    monkeypatch.setattr("edgetune.verify.lengths.LEAST_TOKENS", 0)
    monkeypatch.setattr("edgetune.verify.lengths.ALL_PRODUCTS", 0)
    folder = a_decoder("Mistral", sliding_window=100)
    result = export_folder(folder, tmp_path / "bundle", a_recipe(precision="fp32"), prompts=prompts)
    (found,) = (check for check in result.verification.checks if check.name == "logits beyond 100 tokens")
    assert "of a small random model of this kind" in found.detail


def test_a_graph_that_lost_a_window_or_has_other_tables_is_found(a_decoder, tmp_path):
    folder = a_decoder("Mistral", sliding_window=WINDOW)
    bundle = graph_of(folder, tmp_path / "graph")
    assert all(check.passed for check in attention_checks(bundle, folder))
    model = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False)
    node = next(node for node in model.graph.node if node.name == "/model/layers.1/attn/GroupQueryAttention")
    next(item for item in node.attribute if item.name == "local_window_size").i = -1
    onnx.save(model, str(bundle.path / "model.onnx"))
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 9000.0
    (folder / "config.json").write_text(json.dumps(config))
    windows, tables = attention_checks(bundle, folder)
    assert not windows.passed
    assert windows.detail.endswith("wrong in 1")
    assert not tables.passed


def test_tables_for_more_than_the_context_that_a_bundle_promises_are_found(a_decoder, tmp_path):
    folder = a_decoder()
    bundle = graph_of(folder, tmp_path / "graph")
    _, whole = attention_checks(bundle, folder)
    assert whole.passed
    _, tables = attention_checks(dataclasses.replace(bundle, context_length=100), folder)
    assert not tables.passed


@pytest.mark.parametrize("kind", ["Gemma2", "Gemma3", "Mistral", "Phi3", "Qwen3", "SmolLM3"])
def test_a_base_that_can_be_exported_is_found_so_before_its_training(a_decoder, kind):
    check_computable(a_decoder(kind, **WINDOWED[kind]))


def test_a_rotation_that_is_no_table_is_named(a_decoder):
    folder = a_decoder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": {**THETA, "rope_type": "spiral"}}))
    with pytest.raises(ModelError, match=r"the rotary scaling 'spiral' cannot be exported; .*yarn"):
        check_computable(folder)


def test_a_graph_that_would_compute_something_else_is_refused_before_the_training(a_decoder, monkeypatch):
    def without_rotation(_, attention):
        return {kind: (torch.ones(256, 16), torch.zeros(256, 16)) for kind in set(attention.tables)}

    monkeypatch.setattr("edgetune.export.decoder.rotary_tables", without_rotation)
    with pytest.raises(ModelError, match="would compute something else than transformers, after 48 tokens"):
        check_computable(a_decoder())


def test_planning_leaves_the_generator_of_random_numbers_alone(a_decoder):
    folder = a_decoder()
    torch.manual_seed(7)
    wanted = torch.rand(2)
    torch.manual_seed(7)
    check_computable(folder)
    assert torch.equal(torch.rand(2), wanted)
